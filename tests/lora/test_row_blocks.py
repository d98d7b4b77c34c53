"""Large tensors are merged a few rows after the other, with the same result."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

LINEAR = ["wide", "tall"]


class Large(nn.Module):
    """Layers whose weights are several blocks long, with lengths that blocks do not divide."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Linear(1200, 330)
        self.tall = nn.Linear(90, 4100)
        self.conv = nn.Conv2d(96, 250, 5)
        self.flipped = Conv1D(330, 1200)
        self.embed = nn.Embedding(3000, 120)


CONFIGS = {
    "lora": peft.LoraConfig(r=3, target_modules=[*LINEAR, "conv", "embed"]),
    "dora": peft.LoraConfig(r=3, target_modules=[*LINEAR, "conv", "embed"], use_dora=True),
    "dora-conv1d": peft.LoraConfig(r=3, target_modules=["flipped"], fan_in_fan_out=True, use_dora=True),
    "tokens": peft.TrainableTokensConfig(target_modules=["embed"], token_indices=[0, 1500, 2999, 7]),
    "loha": peft.LoHaConfig(r=3, alpha=5, target_modules=[*LINEAR, "conv"]),
    "loha-cores": peft.LoHaConfig(r=3, alpha=5, target_modules=["conv"], use_effective_conv2d=True),
    "lokr": peft.LoKrConfig(r=2, alpha=5, target_modules=[*LINEAR, "conv"]),
    "lokr-cores": peft.LoKrConfig(r=2, alpha=5, target_modules=["conv"], use_effective_conv2d=True),
    "lokr-both": peft.LoKrConfig(r=1, alpha=5, target_modules=LINEAR, decompose_both=True, decompose_factor=6),
    "ia3": peft.IA3Config(target_modules=[*LINEAR, "conv"], feedforward_modules=["tall"]),
    "vera": peft.VeraConfig(r=4, target_modules=LINEAR),
    "oft": peft.OFTConfig(oft_block_size=30, r=0, target_modules=LINEAR, use_cayley_neumann=False),
    "hra": peft.HRAConfig(r=4, target_modules=[*LINEAR, "conv"]),
    "miss": peft.MissConfig(r=7, target_modules=LINEAR),
    "miss-bat": peft.MissConfig(r=10, target_modules=LINEAR, init_weights="bat"),
    "vblora": peft.VBLoRAConfig(r=3, num_vectors=9, vector_length=10, target_modules=LINEAR),
    "delora": peft.DeloraConfig(r=3, target_modules=LINEAR),
    "adalora": peft.AdaLoraConfig(init_r=3, total_step=9, target_modules=[*LINEAR, "conv"]),
    "c3a": peft.C3AConfig(block_size=30, target_modules=["wide"]),
    "road": peft.RoadConfig(group_size=10, target_modules=LINEAR),
    "gralora": peft.GraloraConfig(r=4, hybrid_r=2, target_modules=LINEAR),
    "hira": peft.HiraConfig(r=3, target_modules=[*LINEAR, "conv", "embed"]),
    "shira": peft.ShiraConfig(r=2, target_modules=LINEAR, init_weights=False),
    "fourierft": peft.FourierFTConfig(n_frequency=300, target_modules=LINEAR),
    "waveft": peft.WaveFTConfig(n_frequency=3000, target_modules=LINEAR),
    "boft": peft.BOFTConfig(boft_block_size=30, target_modules=LINEAR),
    "randlora": peft.RandLoraConfig(r=30, target_modules=["wide"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_of_rows_make_the_whole(train: Any, merge: Any, distance: Any, name: str) -> None:
    trained = train(CONFIGS[name], module=Large())
    merged = merge(trained.base, trained.folder)
    assert distance(merged, trained.exact) < 1e-7
    assert distance(merged, trained.merged) < 1e-6


def test_two_kinds_of_file_hold_the_same(train: Any, merge: Any, distance: Any) -> None:
    trained = train(CONFIGS["lora"], module=Large())
    merged = merge(trained.base, trained.folder)
    assert distance(merged, merge(trained.base, trained.folder, output="merged.pth")) == 0
