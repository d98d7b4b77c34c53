"""LoRA and DoRA on every kind of layer, against what PEFT merges."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lora.conftest import peft

LAYERS = ("embed", "wide", "square", "conv", "point", "wave", "head")
NEAR = 1e-6


def lora(*layers: str, **settings: Any) -> Any:
    return peft.LoraConfig(**{"r": 3, "lora_alpha": 7, "target_modules": list(layers or LAYERS)} | settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"conv": 2, "block.wide": 5}, "alpha_pattern": {".*square": 1, "embed": 16}},
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True, "r": 4},
    ],
    ids=["plain", "root", "patterns", "dora", "dora-root"],
)
def test_every_layer_becomes_what_peft_makes_of_it(
    train: Any, merge: Any, distance: Any, settings: dict[str, Any]
) -> None:
    trained = train(lora(**settings))
    merged = merge(trained.base, trained.folder)
    assert distance(merged, trained.merged) < NEAR
    assert distance(merged, trained.exact) <= distance(trained.merged, trained.exact)
    assert distance(merged, merge(trained.base, trained.folder, output="merged.pth")) == 0
