"""Adapters in one file, as kohya, LyCORIS, diffusers and mlx save them, against the formulas written out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from qtool.cli.app import app

Noise = Callable[..., torch.Tensor]


def check(merge: Any, base: Path, adapter: Path, expected: dict[str, torch.Tensor]) -> None:
    before, merged = load_file(base), merge(base, adapter)
    for name, value in before.items():
        change = expected.get(name, torch.zeros(())).double()
        torch.testing.assert_close(merged[name].double(), value.double() + change, atol=1e-6, rtol=1e-6)


def test_kohya_names_are_unflattened(merge: Any, base: Path, noise: Noise, stored: Any) -> None:
    down, up = noise(3, 12), noise(18, 3)
    conv_down, conv_up = noise(2, 4, 3, 3), noise(6, 2, 1, 1)
    adapter = stored(
        {
            "lora_unet_block_wide.lora_down.weight": down,
            "lora_unet_block_wide.lora_up.weight": up,
            "lora_unet_block_wide.alpha": torch.tensor(1.5),
            "lora_unet_block_conv.lora_down.weight": conv_down,
            "lora_unet_block_conv.lora_up.weight": conv_up,
        },
    )
    conv = torch.einsum("or,rikl->oikl", conv_up[:, :, 0, 0], conv_down)
    check(merge, base, adapter, {"block.wide.weight": 0.5 * up @ down, "block.conv.weight": conv})


def test_kohya_middle_matrices_belong_to_the_product(merge: Any, base: Path, noise: Noise, stored: Any) -> None:
    down, middle, up = noise(2, 4, 1, 1), noise(2, 2, 3, 3), noise(6, 2, 1, 1)
    names = ("lora_down", "lora_mid", "lora_up")
    tensors = {
        f"lora_unet_block_conv.{name}.weight": value for name, value in zip(names, (down, middle, up), strict=True)
    }
    expected = torch.einsum("oi,ijkl,jc->ockl", up[:, :, 0, 0], middle, down[:, :, 0, 0])
    check(merge, base, stored(tensors), {"block.conv.weight": expected})


def test_lycoris_kinds_are_scaled_as_it_does(merge: Any, base: Path, noise: Noise, stored: Any) -> None:
    parts = [noise(18, 3), noise(3, 12), noise(18, 3) + 0.1, noise(3, 12) - 0.1]
    roles = ("w1_a", "w1_b", "w2_a", "w2_b")
    tensors = {f"lycoris_block_wide.hada_{role}": part for role, part in zip(roles, parts, strict=True)}
    tensors["lycoris_block_wide.alpha"] = torch.tensor(6.0)
    expected = 2 * (parts[0] @ parts[1]) * (parts[2] @ parts[3])
    check(merge, base, stored(tensors), {"block.wide.weight": expected})
    first, second = noise(3, 2), noise(6, 6)
    # With both factors whole there is no rank, and the alpha says nothing.
    whole = {"lycoris_block_wide.lokr_w1": first, "lycoris_block_wide.lokr_w2": second}
    adapter = stored(whole | {"lycoris_block_wide.alpha": torch.tensor(6.0)}, "lokr.safetensors")
    check(merge, base, adapter, {"block.wide.weight": torch.kron(first, second)})


def test_diffusers_files_need_no_settings(merge: Any, base: Path, noise: Noise, stored: Any) -> None:
    down, up = noise(3, 12), noise(18, 3)
    tensors = {"unet.block.wide.lora_A.weight": down, "unet.block.wide.lora_B.weight": up}
    check(merge, base, stored(tensors), {"block.wide.weight": up @ down})
    older = {"unet.block.wide.lora.down.weight": down, "unet.block.wide.lora.up.weight": up}
    check(merge, base, stored(older, "older.safetensors"), {"block.wide.weight": up @ down})


def test_mlx_matrices_are_transposed_and_scaled_as_their_settings_say(
    merge: Any, refused: Any, base: Path, noise: Noise, stored: Any, tmp_path: Path
) -> None:
    first, second = noise(12, 3), noise(3, 18)
    adapter = stored({"block.wide.lora_a": first, "block.wide.lora_b": second}, "adapters.safetensors")
    assert "does not give its scale" in refused(base, adapter)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_parameters": {"rank": 3, "scale": 20.0}}))
    check(merge, base, adapter, {"block.wide.weight": 20 * (first @ second).T})


def test_flattened_names_that_fit_two_modules_or_none_are_refused(
    refused: Any, base: Path, noise: Noise, stored: Any, tmp_path: Path
) -> None:
    tensors = {
        "lora_unet_block_wide.lora_down.weight": noise(3, 12),
        "lora_unet_block_wide.lora_up.weight": noise(18, 3),
    }
    adapter = stored(tensors)
    state = load_file(base)
    save_file(state | {"block_wide.weight": state["block.wide.weight"].clone()}, tmp_path / "both.safetensors")
    assert "is ambiguous: block.wide, block_wide" in refused(tmp_path / "both.safetensors", adapter)
    del state["block.wide.weight"], state["block.wide.bias"]
    save_file(state, tmp_path / "none.safetensors")
    assert "underscores instead of dots" in refused(tmp_path / "none.safetensors", adapter)
    strange = stored(tensors | {"lora_unet_block_wide.oft_blocks": noise(18, 1)}, "strange.safetensors")
    assert "oft_blocks', which belongs to no kind" in refused(base, strange)


def test_a_single_file_is_described(noise: Noise, stored: Any) -> None:
    tensors = {"lora_unet_mid_to_q.lora_down.weight": noise(3, 12), "lora_unet_mid_to_q.lora_up.weight": noise(18, 3)}
    result = CliRunner().invoke(app, ["inspect", str(stored(tensors)), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["kind"], report["parameters"]) == ("LoRA", 90)
    assert report["targets"][0]["module"] == "mid_to_q"
    assert (report["targets"][0]["rank"], report["targets"][0]["scale"]) == (3, 1.0)


def test_a_checkpoint_with_adapters_in_it_is_still_a_model(noise: Noise, stored: Any) -> None:
    tensors = {"wide.base_layer.weight": noise(4, 4), "wide.lora_A.default.weight": noise(2, 4)}
    result = CliRunner().invoke(app, ["inspect", str(stored(tensors)), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["tensors"] == 2
