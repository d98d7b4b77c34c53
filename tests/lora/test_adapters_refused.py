"""What cannot be merged is refused by name, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

Edit = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture
def trained(train: Any) -> Any:
    return train(peft.LoraConfig(r=3, target_modules=["wide", "head"]))


def edit_tensors(folder: Path, edit: Edit) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def edit_settings(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


FIRST = "base_model.model.block.wide.lora_A.weight"
SECOND = "base_model.model.block.wide.lora_B.weight"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda tensors: tensors.pop(SECOND), "of block.wide without lora_B"),
        (lambda tensors: tensors.pop(FIRST), "of block.wide without lora_A"),
        (lambda tensors: tensors.update({FIRST: tensors[FIRST] * float("nan")}), "holds a NaN"),
        (lambda tensors: tensors.update({FIRST: tensors[FIRST] * float("inf")}), "holds a NaN or an infinity"),
        (lambda tensors: tensors.update({FIRST: torch.zeros(0, 12)}), "so no elements"),
        (lambda tensors: tensors.update({FIRST: torch.ones(3, 12, dtype=torch.int8)}), "holds int8, not floats"),
        (lambda tensors: tensors.update({FIRST: torch.ones(2, 12), SECOND: torch.ones(18, 2)}), "ranks 2 and 2"),
        (lambda tensors: tensors.update({FIRST: torch.ones(3, 13)}), "does not fit block.wide.weight"),
        (lambda tensors: tensors.update({"base_model.model.block.wide.lora_X": torch.ones(3)}), "belongs to nothing"),
        (lambda tensors: tensors.update({"base_model.model.block.wide.ia3_l": torch.ones(3)}), "does not belong"),
    ],
    ids=["A without B", "B without A", "NaN", "infinity", "empty", "integers", "rank", "shape", "unused", "other kind"],
)
def test_broken_tensors_are_named(trained: Any, refused: Any, tmp_path: Path, edit: Edit, words: str) -> None:
    edit_tensors(trained.folder, edit)
    before = sorted(tmp_path.rglob("*"))
    found = refused(trained.base, trained.folder, "-o", tmp_path / "out.safetensors")
    assert words in found
    assert "block.wide" in found
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "kind PROMPT_TUNING"),
        ({"peft_type": "PREFIX_TUNING"}, "adds to the model's inputs"),
        ({"peft_type": "XLORA"}, "mixes adapters separately for every input"),
        ({"peft_type": "POLY"}, "mixes adapters separately for every input"),
        ({"peft_type": "BONE"}, "convert it to MiSS"),
        ({"r": "many"}, "gives 'many' as r"),
        ({"lora_alpha": 10**40}, "should be a number"),
        ({"target_parameters": [1]}, "should be a list of names"),
        ({"trainable_token_indices": {"embed": ["x"]}}, "should be a list of rows"),
        ({"rank_pattern": {"(": 3}}, "rank_pattern"),
        ({"use_qalora": True}, "sums groups of inputs"),
        ({"alora_invocation_tokens": [1, 2]}, "some tokens only"),
        ({"layer_replication": [[0, 4]]}, "repeats layers"),
        ({"init_lora_weights": "pissa_niter_16"}, "started with pissa_niter_16, which changed the base weights"),
        ({"init_lora_weights": "olora"}, "started with olora, which changed the base weights"),
        ({"init_lora_weights": "corda"}, "started with corda, which changed the base weights"),
        ({"init_lora_weights": "lora_ga"}, "started with lora_ga, which changed the base weights"),
        ({"init_lora_weights": "loftq"}, "started with loftq, which changed the base weights"),
    ],
)
def test_settings_without_a_merged_form_are_named(
    trained: Any, refused: Any, fields: dict[str, Any], words: str
) -> None:
    edit_settings(trained.folder, **fields)
    assert words in refused(trained.base, trained.folder, "--dry-run")


def test_another_base_is_told_by_its_names(trained: Any, refused: Any, tmp_path: Path) -> None:
    save_file({"block.wild.weight": torch.ones(18, 12)}, tmp_path / "other.safetensors")
    words = refused(tmp_path / "other.safetensors", trained.folder)
    assert "for another base" in words
    assert "the nearest is block.wild" in words


def test_a_quantized_base_is_refused(trained: Any, refused: Any, tmp_path: Path) -> None:
    state = load_file(trained.base)
    state["block.wide.weight"] = state["block.wide.weight"].to(torch.int8)
    save_file(state, tmp_path / "quantized.safetensors")
    assert "holds int8: the base is quantized" in refused(tmp_path / "quantized.safetensors", trained.folder)


@pytest.mark.parametrize("mark", ["qweight", "weight_packed", "weight.absmax", "SCB"])
def test_a_base_that_other_libraries_quantized_is_told_by_its_names(
    trained: Any, refused: Any, tmp_path: Path, mark: str
) -> None:
    state = load_file(trained.base)
    if not mark.startswith("weight."):
        del state["block.wide.weight"]
    save_file(state | {f"block.wide.{mark}": torch.ones(3, dtype=torch.uint8)}, tmp_path / "packed.safetensors")
    words = refused(tmp_path / "packed.safetensors", trained.folder)
    assert f"holds block.wide.{mark}: it is quantized" in words


def test_a_sum_that_the_type_does_not_hold_is_refused(trained: Any, refused: Any, tmp_path: Path) -> None:
    save_file({name: value.half() for name, value in load_file(trained.base).items()}, tmp_path / "half.safetensors")
    words = refused(tmp_path / "half.safetensors", trained.folder, "--scale", "1e6")
    assert "values out of the range of float16" in words
    assert not list(tmp_path.glob("half.merged*"))


def test_pickled_adapters_are_not_opened(trained: Any, refused: Any, tmp_path: Path) -> None:
    tensors = load_file(trained.folder / "adapter_model.safetensors")
    (trained.folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, trained.folder / "adapter_model.bin")
    assert "is a Python pickle" in refused(trained.base, trained.folder)
    assert "is a Python pickle" in refused(trained.base, trained.folder / "adapter_model.bin")


def test_a_folder_that_is_no_adapter_is_refused(trained: Any, refused: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no adapter_config.json" in refused(trained.base, tmp_path / "empty")
    (trained.folder / "adapter_config.json").write_text("{")
    assert "is not JSON" in refused(trained.base, trained.folder)


def test_options_that_leave_nothing_are_refused(trained: Any, refused: Any) -> None:
    assert "matches no module" in refused(trained.base, trained.folder, "--only", "tail")
    assert "leave nothing" in refused(trained.base, trained.folder, "--exclude", "*")
    assert "is not a number" in refused(trained.base, f"{trained.folder}=much")
    assert "must be a finite number" in refused(trained.base, trained.folder, "--scale", "nan")


def test_adapters_whose_changes_do_not_add_up_are_refused(train: Any, refused: Any) -> None:
    one = train(peft.LoraConfig(r=3, target_modules=["wide"], use_dora=True), name="one")
    two = train(peft.LoraConfig(r=3, target_modules=["wide"]), name="two")
    assert "does not add up" in refused(one.base, one.folder, two.folder)
