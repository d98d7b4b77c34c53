"""Linear and Conv1D in one model: PEFT saves the orientation of the last layer only."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

NEAR = 1e-6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = Conv1D(24, 8), Conv1D(8, 8)


class Mixed(nn.Module):
    """A block as in GPT-2, and a head that is Linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.attn = Block()
        self.lm_head = nn.Linear(8, 20, bias=False)


class Bare(nn.Module):
    """A square Conv1D without a neighbour that tells what it is, and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.c_proj = Conv1D(8, 8)
        self.lm_head = nn.Linear(8, 20, bias=False)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("targets", [["c_attn", "lm_head"], ["c_proj", "lm_head"], ["c_attn", "c_proj", "lm_head"]])
def test_linear_and_conv1d_in_one_adapter(
    train: Any, merge: Any, distance: Any, targets: list[str], dora: bool
) -> None:
    adapter = train(peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, use_dora=dora), module=Mixed())
    assert distance(merge(adapter.base, adapter.folder), adapter.merged) < NEAR


def test_a_square_conv1d_alone_follows_the_settings(train: Any, merge: Any, distance: Any) -> None:
    adapter = train(peft.LoraConfig(r=2, target_modules=["c_proj"], fan_in_fan_out=True), module=Bare())
    assert distance(merge(adapter.base, adapter.folder), adapter.merged) < NEAR


def test_a_square_layer_that_nothing_tells_about_is_refused(train: Any, refused: Any) -> None:
    config = peft.LoraConfig(r=2, target_modules=["c_proj", "lm_head"], fan_in_fan_out=True)
    adapter = train(config, module=Bare())
    settings = adapter.folder / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"fan_in_fan_out": false', '"fan_in_fan_out": true'))
    assert "is square" in refused(adapter.base, adapter.folder)
