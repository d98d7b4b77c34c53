"""The kinds that change a weight in ways of their own, against what PEFT merges."""

from __future__ import annotations

import json
from typing import Any

import peft
import pytest
from typer.testing import CliRunner

from qtool.cli.app import app

NEAR = 1e-6
LINEAR = ["wide", "square", "head"]

CONFIGS: dict[str, tuple[str, Any]] = {
    "ln": ("LN tuning", peft.LNTuningConfig(target_modules=["norm"])),
    "hra": ("HRA", peft.HRAConfig(r=4, target_modules=[*LINEAR, "conv", "point"])),
    "hra-orthogonal": ("HRA", peft.HRAConfig(r=3, target_modules=[*LINEAR, "conv"], apply_GS=True)),
    "miss": ("MiSS", peft.MissConfig(r=6, target_modules=LINEAR)),
    "miss-rest": ("MiSS", peft.MissConfig(r=5, target_modules=LINEAR)),
    "miss-mini": ("MiSS", peft.MissConfig(r=6, mini_r=9, target_modules=["wide", "square"], init_weights="mini")),
    "miss-bat": ("MiSS", peft.MissConfig(r=6, target_modules=["wide", "square"], init_weights="bat")),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_becomes_what_peft_makes_of_it(train: Any, merge: Any, distance: Any, name: str) -> None:
    kind, config = CONFIGS[name]
    trained = train(config)
    assert distance(merge(trained.base, trained.folder), trained.merged) < NEAR
    described = CliRunner().invoke(app, ["inspect", str(trained.folder), "--json"])
    assert json.loads(described.stdout)["kind"] == kind
