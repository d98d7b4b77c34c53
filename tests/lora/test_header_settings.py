"""Ranks, alphas and rsLoRA that only the header of a single file tells of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

RANK = 4


def matrices(noise: Callable[..., torch.Tensor], prefix: str, first: str, second: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{first}.weight": noise(RANK, 6), f"{prefix}{second}.weight": noise(6, RANK)}


def scale_of(base: Path, merged: dict[str, torch.Tensor], noise: Callable[..., torch.Tensor]) -> float:
    change = merged["blocks.0.to_q.weight"] - load_file(base)["blocks.0.to_q.weight"]
    product = noise(6, RANK) @ noise(RANK, 6)
    return float((change * product).sum() / (product * product).sum())


def diffusers(**fields: Any) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in fields.items()})}


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        (diffusers(r=RANK, lora_alpha=16), 4.0),
        (diffusers(r=RANK, lora_alpha=16, use_rslora=True), 16 / math.sqrt(RANK)),
        (diffusers(r=RANK, lora_alpha=16, alpha_pattern={"blocks.0.to_q": 2}), 0.5),
        ({"transformer.r": "4", "transformer.lora_alpha": "16"}, 4.0),
        ({"r": "4", "lora_alpha": "16", "use_rslora": "True"}, 8.0),
        ({"ss_network_alpha": "16", "ss_network_dim": "4"}, 4.0),
        ({"ss_network_alpha": "16.0", "ss_network_args": json.dumps({"rs_lora": "True"})}, 8.0),
        ({"format": "pt"}, 1.0),
    ],
)
def test_scales_come_from_the_header(
    tmp_path: Path, merge: Any, noise: Callable[..., torch.Tensor], metadata: dict[str, str], scale: float
) -> None:
    base, style = tmp_path / "base.safetensors", tmp_path / "style.safetensors"
    save_file({"blocks.0.to_q.weight": noise(6, 6)}, base)
    save_file(matrices(noise, "transformer.blocks.0.to_q.", "lora_A", "lora_B"), style, metadata=metadata)
    assert scale_of(base, merge(base, style), noise) == pytest.approx(scale, rel=1e-4)


def test_kohya_names_take_the_scale_of_the_header_and_their_own_before_it(
    tmp_path: Path, merge: Any, noise: Callable[..., torch.Tensor]
) -> None:
    base, style = tmp_path / "base.safetensors", tmp_path / "style.safetensors"
    save_file({"blocks.0.to_q.weight": noise(6, 6)}, base)
    tensors = matrices(noise, "lora_transformer_blocks_0_to_q.", "lora_down", "lora_up")
    save_file(tensors, style, metadata={"ss_network_alpha": "16"})
    assert scale_of(base, merge(base, style), noise) == pytest.approx(4.0, rel=1e-4)
    save_file(
        tensors | {"lora_transformer_blocks_0_to_q.alpha": torch.tensor(2.0)},
        style,
        metadata={"ss_network_alpha": "16"},
    )
    assert scale_of(base, merge(base, style), noise) == pytest.approx(0.5, rel=1e-4)


def test_a_header_of_another_rank_is_refused(tmp_path: Path, refused: Any, noise: Callable[..., torch.Tensor]) -> None:
    base, style = tmp_path / "base.safetensors", tmp_path / "style.safetensors"
    save_file({"blocks.0.to_q.weight": noise(6, 6)}, base)
    save_file(
        matrices(noise, "transformer.blocks.0.to_q.", "lora_A", "lora_B"), style, metadata=diffusers(r=8, lora_alpha=16)
    )
    assert "the header says 8" in refused(base, style)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=12),
    entry=st.sampled_from(["lora_adapter_metadata", "r", "lora_alpha", "ss_network_alpha", "ss_network_args"]),
)
def test_no_header_ends_in_an_internal_error(
    tmp_path: Path, command: Any, noise: Callable[..., torch.Tensor], text: str, entry: str
) -> None:
    base, style = tmp_path / "base.safetensors", tmp_path / "style.safetensors"
    save_file({"blocks.0.to_q.weight": noise(6, 6)}, base)
    save_file(
        matrices(noise, "transformer.blocks.0.to_q.", "lora_A", "lora_B"), style, metadata={"r": "4", entry: text}
    )
    assert command(base, style, "--dry-run").exit_code in (0, 2)


LYCORIS = {"ss_network_module": "lycoris.kohya"}


@pytest.mark.parametrize(
    ("metadata", "linear", "convolution"),
    [
        ({"ss_network_alpha": "16", "ss_network_args": json.dumps({"conv_dim": "2", "conv_alpha": "1"})}, 4.0, 0.5),
        ({"ss_network_alpha": "16", "ss_network_args": json.dumps({"conv_dim": "2"})}, 4.0, 0.5),
        ({"ss_network_alpha": "16", "ss_network_args": json.dumps({"conv_dim": "2"}), **LYCORIS}, 4.0, 8.0),
        ({"ss_network_args": json.dumps({"conv_dim": 2, "conv_alpha": 6})}, 1.0, 3.0),
        ({"ss_network_alpha": "16", "ss_network_args": json.dumps({"dropout": "0.1"})}, 4.0, 8.0),
    ],
)
@pytest.mark.parametrize("middle", [False, True], ids=["two matrices", "with a middle"])
def test_convolutions_have_an_alpha_of_their_own(
    tmp_path: Path,
    merge: Any,
    noise: Callable[..., torch.Tensor],
    metadata: dict[str, str],
    linear: float,
    convolution: float,
    middle: bool,
) -> None:
    base, style = tmp_path / "base.safetensors", tmp_path / "style.safetensors"
    save_file(
        {
            "blocks.0.to_q.weight": noise(6, 6),
            "blocks.0.conv.weight": noise(5, 3, 3, 3),
            "blocks.0.point.weight": noise(5, 6, 1, 1),
        },
        base,
    )
    tensors = matrices(noise, "lora_transformer_blocks_0_to_q.", "lora_down", "lora_up")
    tensors["lora_transformer_blocks_0_point.lora_down.weight"] = noise(RANK, 6, 1, 1)
    tensors["lora_transformer_blocks_0_point.lora_up.weight"] = noise(5, RANK, 1, 1)
    conv = "lora_transformer_blocks_0_conv"
    tensors[f"{conv}.lora_up.weight"] = noise(5, 2, 1, 1)
    if middle:
        tensors[f"{conv}.lora_down.weight"], tensors[f"{conv}.lora_mid.weight"] = noise(2, 3, 1, 1), noise(2, 2, 3, 3)
    else:
        tensors[f"{conv}.lora_down.weight"] = noise(2, 3, 3, 3)
    if middle:
        product = torch.einsum(
            "or,rsij,sc->ocij",
            tensors[f"{conv}.lora_up.weight"].flatten(1),
            tensors[f"{conv}.lora_mid.weight"],
            tensors[f"{conv}.lora_down.weight"].flatten(1),
        )
    else:
        product = torch.einsum(
            "or,rcij->ocij", tensors[f"{conv}.lora_up.weight"].flatten(1), tensors[f"{conv}.lora_down.weight"]
        )
    save_file(tensors, style, metadata=metadata)
    merged, before = merge(base, style), load_file(base)
    assert scale_of(base, merged, noise) == pytest.approx(linear, rel=1e-4)
    point = tensors["lora_transformer_blocks_0_point.lora_up.weight"].flatten(1) @ (
        tensors["lora_transformer_blocks_0_point.lora_down.weight"].flatten(1)
    )
    for name, change, scale in (("conv", product, convolution), ("point", point[:, :, None, None], linear)):
        key = f"blocks.0.{name}.weight"
        torch.testing.assert_close(merged[key] - before[key], scale * change, atol=1e-5, rtol=1e-4)
    tensors[f"{conv}.alpha"] = torch.tensor(4.0)
    save_file(tensors, style, metadata=metadata)
    key = "blocks.0.conv.weight"
    torch.testing.assert_close(merge(base, style)[key] - before[key], 2.0 * product, atol=1e-5, rtol=1e-4)


def test_a_loha_that_may_be_a_convolution_is_refused(
    tmp_path: Path, refused: Any, noise: Callable[..., torch.Tensor]
) -> None:
    base, style = tmp_path / "base.safetensors", tmp_path / "style.safetensors"
    save_file({"blocks.0.conv.weight": noise(5, 3, 3, 3)}, base)
    parts = {"hada_w1_a": (5, 2), "hada_w1_b": (2, 27), "hada_w2_a": (5, 2), "hada_w2_b": (2, 27)}
    metadata = {"ss_network_alpha": "16", "ss_network_args": json.dumps({"conv_dim": "2", "conv_alpha": "1"})}
    save_file(
        {f"lora_transformer_blocks_0_conv.{name}": noise(*shape) for name, shape in parts.items()}, style, metadata
    )
    assert "gives convolutions a separate alpha" in refused(base, style)
