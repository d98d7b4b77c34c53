"""What ``qtool inspect`` says about adapters."""

from __future__ import annotations

import json
from typing import Any

import peft
from typer.testing import CliRunner

from qtool.cli.app import app


def test_an_adapter_is_described(train: Any) -> None:
    trained = train(
        peft.LoraConfig(
            r=3, lora_alpha=6, target_modules=["wide", "head"], rank_pattern={"head": 2}, modules_to_save=["norm"]
        )
    )
    for path in (trained.folder, trained.folder / "adapter_model.safetensors"):
        result = CliRunner().invoke(app, ["inspect", str(path), "--json"])
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert (report["kind"], report["rank"], report["alpha"]) == ("LoRA", 3, 6)
        assert report["parameters"] == 3 * (12 + 18) + 2 * (18 + 5) + 2 * 18
        assert [(target["module"], target["rank"], target["scale"]) for target in report["targets"]] == [
            ("block.wide", 3, 2.0),
            ("head", 2, 3.0),
        ]
        assert report["targets"][0]["parts"] == {"lora_A": [3, 12], "lora_B": [18, 3]}
        assert sorted(report["replaced"]) == ["norm.bias", "norm.weight"]
    text = CliRunner().invoke(app, ["inspect", str(trained.folder)]).stdout
    assert "LoRA adapter" in text
    assert "lora_A 3x12" in text


def test_an_adapter_without_its_weights_is_no_model_either(train: Any) -> None:
    trained = train(peft.LoraConfig(r=3, target_modules=["wide"]))
    (trained.folder / "adapter_model.safetensors").unlink()
    result = CliRunner().invoke(app, ["inspect", str(trained.folder)])
    assert result.exit_code == 2
    assert "has no adapter_model.safetensors" in result.stderr
