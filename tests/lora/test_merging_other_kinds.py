"""Kinds besides LoRA, trained biases and whole modules, against what PEFT merges."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn

NEAR = 1e-6
LINEAR = ["wide", "square", "head"]


def lora(*layers: str, **settings: Any) -> Any:
    return peft.LoraConfig(**{"r": 3, "lora_alpha": 7, "target_modules": list(layers)} | settings)


CONFIGS = {
    "conv1d": lora("flipped", fan_in_fan_out=True),
    "conv1d-dora": lora("flipped", fan_in_fan_out=True, use_dora=True),
    "attention": lora("attention"),
    "lora-bias": lora("wide", "head", lora_bias=True),
    "all-biases": lora("wide", bias="all"),
    "saved-modules": lora("wide", modules_to_save=["head", "norm"]),
    "tokens": lora("wide", trainable_token_indices={"embed": [3, 1, 19]}),
    "only-tokens": peft.TrainableTokensConfig(target_modules=["embed"], token_indices=[0, 7]),
    "loha": peft.LoHaConfig(r=3, alpha=5, target_modules=[*LINEAR, "conv", "point"]),
    "loha-cores": peft.LoHaConfig(r=3, alpha=5, target_modules=["conv", "wave"], use_effective_conv2d=True),
    "lokr": peft.LoKrConfig(r=2, alpha=5, target_modules=[*LINEAR, "conv", "point"]),
    "lokr-cores": peft.LoKrConfig(r=2, alpha=5, target_modules=["conv"], use_effective_conv2d=True),
    "lokr-both": peft.LoKrConfig(r=1, alpha=5, target_modules=LINEAR, decompose_both=True),
    "ia3": peft.IA3Config(target_modules=["wide", "square", "conv", "point"], feedforward_modules=["square", "point"]),
    "ia3-conv1d": peft.IA3Config(target_modules=["flipped"], feedforward_modules=[], fan_in_fan_out=True),
    "vera": peft.VeraConfig(r=4, target_modules=LINEAR),
    "vera-conv1d": peft.VeraConfig(r=4, target_modules=["flipped"], fan_in_fan_out=True),
    "oft": peft.OFTConfig(oft_block_size=3, r=0, target_modules=[*LINEAR, "conv"], use_cayley_neumann=False),
    "oft-series": peft.OFTConfig(oft_block_size=3, r=0, target_modules=LINEAR, num_cayley_neumann_terms=6),
    "oft-constraint": peft.OFTConfig(oft_block_size=6, r=0, target_modules=LINEAR, coft=True, eps=0.1),
    "oft-shared": peft.OFTConfig(oft_block_size=6, r=0, target_modules=LINEAR, block_share=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_becomes_what_peft_makes_of_it(train: Any, merge: Any, distance: Any, name: str) -> None:
    trained = train(CONFIGS[name])
    merged = merge(trained.base, trained.folder)
    assert distance(merged, trained.merged) < NEAR
    assert distance(merged, trained.exact) <= max(distance(trained.merged, trained.exact), 6e-8)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 6, 10))
        self.down = nn.Parameter(torch.randn(4, 5, 6))


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = Experts()
        self.head = nn.Linear(6, 3)


def test_parameters_that_are_trained_by_name_are_told_by_their_shapes(train: Any, merge: Any, distance: Any) -> None:
    torch.manual_seed(0)
    trained = train(
        lora("head", target_parameters=["experts.up", "experts.down"], alpha_pattern={"experts.up": 4}),
        module=Mixture(),
    )
    assert distance(merge(trained.base, trained.folder), trained.merged) < NEAR
