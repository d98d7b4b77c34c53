"""In half precision, qtool rounds once; PEFT rounds again where the adapter is in half precision, too."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

LAYERS = ["wide", "square", "head"]
CONFIGS = {
    "lora": peft.LoraConfig(r=3, lora_alpha=5, target_modules=[*LAYERS, "conv"]),
    "dora": peft.LoraConfig(r=3, lora_alpha=5, target_modules=LAYERS, use_dora=True),
    "loha": peft.LoHaConfig(r=3, alpha=5, target_modules=[*LAYERS, "conv"]),
    "lokr": peft.LoKrConfig(r=2, alpha=5, target_modules=[*LAYERS, "conv"]),
}


# Kinds of which PEFT rounds the sum once, or does not merge in half precision.
OTHERS = {
    "conv1d": peft.LoraConfig(r=3, target_modules=["flipped"], fan_in_fan_out=True),
    "conv1d-dora": peft.LoraConfig(r=3, target_modules=["flipped"], fan_in_fan_out=True, use_dora=True),
    "embedding-dora": peft.LoraConfig(r=3, target_modules=["embed"], use_dora=True),
    "bias": peft.LoraConfig(r=3, target_modules=["wide"], lora_bias=True),
    "tokens": peft.TrainableTokensConfig(target_modules=["embed"], token_indices=[0, 7]),
    "ia3": peft.IA3Config(target_modules=["wide", "square", "conv"], feedforward_modules=["square"]),
    "vera": peft.VeraConfig(r=4, target_modules=LAYERS),
    "oft": peft.OFTConfig(oft_block_size=3, r=0, target_modules=LAYERS, use_cayley_neumann=False),
}


def merged_by_peft(net: nn.Module, state: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype) -> Any:
    module = copy.deepcopy(net).to(dtype)
    module.load_state_dict(state)
    return peft.PeftModel.from_pretrained(module, folder, autocast_adapter_dtype=False).to(dtype).merge_and_unload()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_results_are_nearer_to_the_exact_ones_than_those_of_peft(
    train: Any, merge: Any, net: nn.Module, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    trained = train(CONFIGS[name])
    file = trained.folder / "adapter_model.safetensors"
    save_file({key: value.to(dtype) for key, value in load_file(file).items()}, file)
    base = {key: value.to(dtype) for key, value in load_file(trained.base).items()}
    save_file(base, tmp_path / "half.safetensors")
    exact = merged_by_peft(net, base, trained.folder, torch.float64).state_dict()
    twice = merged_by_peft(net, base, trained.folder, dtype).state_dict()
    once = merge(tmp_path / "half.safetensors", trained.folder)
    changed = [key for key in base if not torch.equal(base[key].double(), exact[key])]
    assert len(changed) == len(CONFIGS[name].target_modules)
    for key in changed:
        assert torch.equal(once[key], exact[key].to(dtype))
        error, other = (float((state[key].double() - exact[key]).norm()) for state in (once, twice))
        assert error < 0.97 * other


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", OTHERS)
def test_results_are_the_exact_ones_rounded_once(
    train: Any, merge: Any, net: nn.Module, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    trained = train(OTHERS[name])
    base = {key: value.to(dtype) for key, value in load_file(trained.base).items()}
    save_file(base, tmp_path / "half.safetensors")
    exact = merged_by_peft(net, base, trained.folder, torch.float64).state_dict()
    merged = merge(tmp_path / "half.safetensors", trained.folder)
    assert any(not torch.equal(base[key], merged[key]) for key in base)
    for key, value in merged.items():
        assert torch.equal(value, exact[key].to(dtype)), key
