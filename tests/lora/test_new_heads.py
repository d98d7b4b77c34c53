"""Whole modules that an adapter brings along: heads that the base does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import peft
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from torch import nn

NEW = {"tail.weight", "tail.bias"}


class WithTail(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(12, 10)
        self.tail = nn.Linear(10, 3)


@pytest.fixture
def trained(train: Any) -> Any:
    return train(peft.LoraConfig(r=2, target_modules=["first"], modules_to_save=["tail"]), module=WithTail())


@pytest.fixture
def headless(trained: Any, tmp_path: Path) -> Path:
    state = {name: value for name, value in load_file(trained.base).items() if name not in NEW}
    save_file(state, tmp_path / "headless.safetensors")
    return tmp_path / "headless.safetensors"


@pytest.mark.parametrize("output", ["merged.safetensors", "merged.pth"])
def test_a_head_that_the_base_lacks_comes_along(
    trained: Any, headless: Path, merge: Any, distance: Any, output: str
) -> None:
    merged = merge(headless, trained.folder, output=output)
    assert set(merged) - set(load_file(headless)) == NEW
    assert distance(merged, trained.merged) < 1e-6


def test_it_goes_into_the_last_of_several_files(
    trained: Any, headless: Path, command: Any, distance: Any, tmp_path: Path
) -> None:
    state = load_file(headless)
    for name, value in state.items():
        save_file({name: value}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "parts.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"{name}.safetensors" for name in state}}))
    result = command(index, trained.folder, "-o", tmp_path / "out.safetensors.index.json")
    assert result.exit_code == 0, result.output
    places = json.loads((tmp_path / "out.safetensors.index.json").read_text())["weight_map"]
    merged = {name: load_file(tmp_path / file)[name] for name, file in places.items()}
    assert distance(merged, trained.merged) < 1e-6


def test_it_is_reported_and_may_be_left_out(trained: Any, headless: Path, command: Any, merge: Any) -> None:
    result = command(headless, trained.folder, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    targets = {target["weight"]: target for target in json.loads(result.stdout)["targets"]}
    assert set(targets) == {"first.weight"} | NEW
    assert targets["tail.weight"]["kinds"] == ["new"]
    assert targets["tail.weight"]["relative_change"] is None
    assert set(merge(headless, trained.folder, "--exclude", "tail")) == set(load_file(headless))


def test_it_comes_whole_or_not_at_all(trained: Any, headless: Path, refused: Any) -> None:
    for options in (("--scale", "0.5"), ("--unmerge",), ("--combine", "ties")):
        words = refused(headless, trained.folder, *options)
        assert "tail.weight is new to the base" in words or "tail.bias is new to the base" in words
    assert "two adapters add it" in refused(headless, trained.folder, trained.folder, "--only", "tail")


def test_only_modules_that_the_settings_name_are_new(trained: Any, headless: Path, refused: Any) -> None:
    config = trained.folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"modules_to_save": None}))
    assert "which belongs to nothing in the base" in refused(headless, trained.folder)


def test_graphs_have_no_nodes_for_it(trained: Any, headless: Path, refused: Any, tmp_path: Path) -> None:
    weights = {name: value.numpy() for name, value in load_file(headless).items()}
    stored = [numpy_helper.from_array(weights[f"first.{name}"], f"first.{name}") for name in ("weight", "bias")]
    node = helper.make_node("Gemm", ["x", "first.weight", "first.bias"], ["y"], transB=1)
    sizes = {"x": 12, "y": 10}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in sizes.items()]
    graph = helper.make_graph([node], "gemm", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "base.onnx")
    words = refused(tmp_path / "base.onnx", trained.folder, "--base-weights", headless)
    assert "a graph has no nodes for it" in words
    assert "--exclude tail" in words
