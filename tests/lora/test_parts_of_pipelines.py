"""Adapters of image generators: norms of LyCORIS, and parts for a unet and for text encoders in one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

Noise = Callable[..., torch.Tensor]
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def pair(noise: Noise) -> Callable[..., Tensors]:
    """Makes the two matrices of one layer in the names of kohya."""

    def make(prefix: str, outputs: int = 18, inputs: int = 12) -> Tensors:
        return {f"{prefix}.lora_down.weight": noise(3, inputs), f"{prefix}.lora_up.weight": noise(outputs, 3)}

    return make


@pytest.mark.parametrize("by_outputs", [True, False], ids=["norms of outputs", "norms of inputs"])
def test_norms_of_lycoris_are_given_to_outputs_or_inputs(
    merge: Any, base: Path, by_outputs: bool, noise: Noise, stored: Any
) -> None:
    down, up = noise(3, 4, 3, 3), noise(6, 3, 1, 1)
    norms = noise(6, 1, 1, 1).abs() + 1 if by_outputs else noise(1, 4, 1, 1).abs() + 1
    key = "lora_unet_block_conv"
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.5)}
    adapter = stored(name="dora.safetensors", tensors=tensors | {f"{key}.dora_scale": norms})
    total = load_file(base)["block.conv.weight"].double()
    total = total + 0.5 * torch.einsum("or,rikl->oikl", up[:, :, 0, 0].double(), down.double())
    axes = (1, 2, 3) if by_outputs else (0, 2, 3)
    expected = total * norms.double() / torch.linalg.vector_norm(total, dim=axes, keepdim=True)
    torch.testing.assert_close(merge(base, adapter)["block.conv.weight"].double(), expected, atol=1e-6, rtol=1e-6)


def test_norms_belong_to_hadamard_products_as_well(merge: Any, base: Path, noise: Noise, stored: Any) -> None:
    parts = {f"hada_{role}": noise(*shape) for role, shape in {"w1_a": (18, 3), "w1_b": (3, 12)}.items()}
    parts |= {"hada_w2_a": noise(18, 3) + 0.1, "hada_w2_b": noise(3, 12) - 0.1, "dora_scale": noise(18, 1).abs() + 1}
    adapter = stored(
        name="loha.safetensors", tensors={f"lycoris_block_wide.{role}": part for role, part in parts.items()}
    )
    first, second = parts["hada_w1_a"] @ parts["hada_w1_b"], parts["hada_w2_a"] @ parts["hada_w2_b"]
    total = (load_file(base)["block.wide.weight"] + first * second).double()
    expected = total * parts["dora_scale"].double() / total.norm(dim=1, keepdim=True)
    torch.testing.assert_close(merge(base, adapter)["block.wide.weight"].double(), expected, atol=1e-6, rtol=1e-6)


def test_norms_that_fit_nothing_are_refused(refused: Any, base: Path, noise: Noise, pair: Any, stored: Any) -> None:
    key = "lora_unet_block_wide"
    adapter = stored(name="a.safetensors", tensors=pair(key) | {f"{key}.dora_scale": noise(5, 1)})
    assert "dora_scale has the shape (5, 1)" in refused(base, adapter)
    adapter = stored(name="b.safetensors", tensors={f"{key}.dora_scale": noise(18, 1)})
    assert "without its matrices" in refused(base, adapter)


def test_one_part_is_merged_where_the_base_is_no_more(
    merge: Any, refused: Any, base: Path, noise: Noise, pair: Any, stored: Any
) -> None:
    tensors = pair("lora_unet_block_wide") | pair("lora_te_text_model_encoder_q_proj")
    adapter = stored(name="style.safetensors", tensors=tensors)
    words = refused(base, adapter)
    assert "changes the text_encoder, too" in words
    assert "--part unet" in words
    merged, before = merge(base, adapter, "--part", "unet"), load_file(base)
    expected = before["block.wide.weight"] + noise(18, 3) @ noise(3, 12)
    torch.testing.assert_close(merged["block.wide.weight"], expected, atol=1e-6, rtol=1e-6)
    assert "no module of the base" in refused(base, adapter, "--part", "text_encoder")
    assert "--part takes text_encoder, unet" in refused(base, adapter, "--part", "vae")


def test_two_text_encoders_with_the_same_names_are_told_apart(
    merge: Any, refused: Any, base: Path, noise: Noise, pair: Any, stored: Any
) -> None:
    second = {name: 2 * tensor for name, tensor in pair("lora_te2_block_wide").items()}
    alphas = {"lora_te1_block_wide.alpha": torch.tensor(1.5), "lora_te2_block_wide.alpha": torch.tensor(6.0)}
    adapter = stored(name="sdxl.safetensors", tensors=pair("lora_te1_block_wide") | second | alphas)
    words = refused(base, adapter)
    assert "changes block_wide both as a part of the text_encoder and of the text_encoder_2" in words
    before = load_file(base)["block.wide.weight"]
    product = noise(18, 3) @ noise(3, 12)
    for part, factor in (("text_encoder", 0.5), ("text_encoder_2", 8.0)):
        merged = merge(base, adapter, "--part", part)["block.wide.weight"]
        torch.testing.assert_close(merged, before + factor * product, atol=1e-5, rtol=1e-6)


def test_diffusers_parts_are_chosen_alike(merge: Any, refused: Any, base: Path, noise: Noise, stored: Any) -> None:
    keys = {"unet.block.wide": (18, 12), "text_encoder.text_model.encoder.q_proj": (4, 4)}
    tensors = {}
    for key, (outputs, inputs) in keys.items():
        tensors |= {f"{key}.lora_A.weight": noise(3, inputs), f"{key}.lora_B.weight": noise(outputs, 3)}
    adapter = stored(name="style.safetensors", tensors=tensors)
    assert "--part unet" in refused(base, adapter)
    merged = merge(base, adapter, "--part", "unet")
    expected = load_file(base)["block.wide.weight"] + noise(18, 3) @ noise(3, 12)
    torch.testing.assert_close(merged["block.wide.weight"], expected, atol=1e-6, rtol=1e-6)
