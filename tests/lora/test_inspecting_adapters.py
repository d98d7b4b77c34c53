"""What ``qtool inspect`` says about adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
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


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "DoRA": (peft.LoraConfig(r=3, lora_alpha=6, target_modules=["wide"], use_dora=True), {"rank": 3, "alpha": 6.0}),
    "LoHa": (peft.LoHaConfig(r=4, alpha=6, target_modules=["wide"]), {"rank": 4, "alpha": 6.0}),
    "LoKr": (peft.LoKrConfig(r=2, alpha=6, target_modules=["wide"]), {"rank": 2, "alpha": 6.0}),
    "IA3": (peft.IA3Config(target_modules=["wide"], feedforward_modules=[]), {"rank": None, "alpha": None}),
    "VeRA": (peft.VeraConfig(r=5, target_modules=["wide"]), {"rank": 5, "alpha": None}),
    "OFT": (peft.OFTConfig(oft_block_size=3, r=0, target_modules=["wide"]), {"rank": None, "alpha": None}),
    "trainable tokens": (
        peft.TrainableTokensConfig(target_modules=["embed"], token_indices=[1]),
        {"rank": None, "alpha": None},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_described(train: Any, kind: str) -> None:
    config, figures = KINDS[kind]
    trained = train(config)
    path = trained.folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "somebody/model"}))
    result = CliRunner().invoke(app, ["inspect", str(trained.folder), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["kind"] == kind
    assert {name: report[name] for name in figures} == figures
    assert report["base_model"] == "somebody/model"
    module = "embed" if kind == "trainable tokens" else "block.wide"
    assert [target["module"] for target in report["targets"]] == [module]
    assert f"{kind} adapter" in CliRunner().invoke(app, ["inspect", str(trained.folder)]).stdout


def test_ranks_are_read_off_the_matrices_where_no_settings_say_them(tmp_path: Path) -> None:
    roles = {"hada_w1_a": (18, 3), "hada_w1_b": (3, 12), "hada_w2_a": (18, 3), "hada_w2_b": (3, 12)}
    tensors = {f"lycoris_mid_wide.{role}": torch.ones(shape) for role, shape in roles.items()}
    tensors |= {"lycoris_mid_wide.alpha": torch.tensor(6.0), "lycoris_mid_wide.dora_scale": torch.ones(18, 1)}
    save_file(tensors, tmp_path / "style.safetensors")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "style.safetensors"), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["kind"] == "LoHa with DoRA"
    assert [(target["rank"], target["scale"]) for target in report["targets"]] == [(3, 2.0)]


def test_an_adapter_without_its_weights_is_no_model_either(train: Any) -> None:
    trained = train(peft.LoraConfig(r=3, target_modules=["wide"]))
    (trained.folder / "adapter_model.safetensors").unlink()
    result = CliRunner().invoke(app, ["inspect", str(trained.folder)])
    assert result.exit_code == 2
    assert "has no adapter_model.safetensors" in result.stderr
