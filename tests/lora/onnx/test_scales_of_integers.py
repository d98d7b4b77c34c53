"""Adapters in integers: what becomes of the integers and of their scales."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import peft
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests.lora.graphs import run, stored_arrays

Array = np.ndarray[Any, np.dtype[Any]]


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(12, 10)


@pytest.fixture
def trained(train: Any) -> Any:
    return train(peft.LoraConfig(r=2, lora_alpha=4, target_modules=["first"], lora_bias=True), module=Layers())


def gemm(path: Path, weight: Array, scale: Array, *, kind: int, zero: Array | None = None, **axis: int) -> Path:
    """Stores Gemm(x, W) + b, W of (10, 12) in integers of ``kind`` and b in 32 bits."""
    linear = Layers().first
    bias_scale = np.resize(scale if scale.size in (1, 10) else np.full(10, 1e-3), 10).astype(np.float32) * 0.02
    bias = np.rint(linear.bias.detach().numpy() / bias_scale).astype(np.int32)
    stored = [
        helper.make_tensor("w", kind, weight.shape, weight.reshape(-1)),
        numpy_helper.from_array(scale.astype(np.float32), "w_scale"),
        numpy_helper.from_array(bias, "b"),
        numpy_helper.from_array(bias_scale, "b_scale"),
    ]
    stored += [] if zero is None else [helper.make_tensor("w_zero", kind, zero.shape, zero.reshape(-1))]
    nodes = [
        helper.make_node(
            "DequantizeLinear", ["w", "w_scale", *(["w_zero"] if zero is not None else [])], ["W"], **axis
        ),
        helper.make_node("DequantizeLinear", ["b", "b_scale"], ["B"], axis=0),
        helper.make_node("Gemm", ["x", "W", "B"], ["y"], transB=1),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 12), ("y", 10))
    ]
    graph = helper.make_graph(nodes, "gemm", ends[:1], ends[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def per_channel(path: Path) -> tuple[Path, Array, Array]:
    weight = Layers().first.weight.detach().numpy().astype(np.float64)
    scale = (np.abs(weight).max(1) / 127).astype(np.float32)
    integers = np.rint(weight / scale[:, None]).astype(np.int8)
    return gemm(path, integers, scale, kind=TensorProto.INT8, axis=0), integers, scale


@pytest.mark.parametrize("policy", ["grow", "keep", "recompute"])
def test_scales_become_what_is_asked_for(trained: Any, merge_graph: Any, tmp_path: Path, policy: str) -> None:
    graph, integers, scale = per_channel(tmp_path / "base.onnx")
    merged = merge_graph(graph, trained.folder, "--base-weights", trained.base, "--scales", policy)
    found = stored_arrays(merged)
    change = (trained.exact["first.weight"] - Layers().first.weight.double()).detach().numpy()
    exact = integers * scale.astype(np.float64)[:, None] + change
    needed = np.abs(exact).max(1) / 127
    expected = {"grow": np.maximum(scale, needed), "keep": scale, "recompute": needed}[policy]
    np.testing.assert_allclose(found["w_scale"], expected, rtol=1e-6)
    rounded = np.clip(np.rint(exact / found["w_scale"].astype(np.float64)[:, None]), -127, 127)
    np.testing.assert_array_equal(found["w"], rounded)
    assert (policy == "keep") == bool((np.abs(exact) > 127.5 * expected[:, None]).any())
    # The bias was trained, too, and its scales stay in step with those of the weight.
    np.testing.assert_allclose(found["b_scale"] / found["w_scale"], 0.02, rtol=1e-6)
    np.testing.assert_allclose(found["b"] * found["b_scale"], trained.exact["first.bias"], atol=2e-4)


def test_outputs_follow_the_change(trained: Any, merge_graph: Any, tmp_path: Path) -> None:
    graph, _, _ = per_channel(tmp_path / "base.onnx")
    merged = merge_graph(graph, trained.folder, "--base-weights", trained.base)
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(3))
    expected = (x.double() @ trained.exact["first.weight"].T + trained.exact["first.bias"]).numpy()
    before = Layers().first(x).detach().numpy()
    assert np.linalg.norm(run(merged, x) - expected) < 0.02 * np.linalg.norm(expected - before)


def test_zero_points_stay(trained: Any, merge_graph: Any, tmp_path: Path) -> None:
    weight = Layers().first.weight.detach().numpy().astype(np.float64)
    scale, zero = np.float32((weight.max() - weight.min()) / 250), np.array(117, np.uint8)
    integers = np.clip(np.rint(weight / scale) + zero, 0, 255).astype(np.uint8)
    graph = gemm(tmp_path / "base.onnx", integers, np.array(scale), kind=TensorProto.UINT8, zero=zero)
    merged = merge_graph(graph, trained.folder, "--base-weights", trained.base, "--scales", "recompute")
    found = stored_arrays(merged)
    floats = (found["w"].astype(np.float64) - 117) * found["w_scale"]
    change = (trained.exact["first.weight"] - Layers().first.weight.double()).detach().numpy()
    exact = (integers.astype(np.float64) - 117) * scale + change
    assert found["w_zero"] == 117
    assert np.abs(floats - exact).max() <= 0.500001 * found["w_scale"]
    assert {int(found["w"].min()), int(found["w"].max())} & {0, 255}


def test_blocks_of_four_bits_are_rounded_block_by_block(trained: Any, merge_graph: Any, tmp_path: Path) -> None:
    weight = Layers().first.weight.detach().numpy().astype(np.float64)
    scale = (np.abs(weight.reshape(10, 3, 4)).max(2) / 7).astype(np.float32)
    integers = np.rint(weight / np.repeat(scale, 4, axis=1)).astype(np.int8)
    graph = gemm(tmp_path / "base.onnx", integers, scale, kind=TensorProto.INT4, axis=1, block_size=4)
    merged = merge_graph(graph, trained.folder, "--base-weights", trained.base, "--scales", "recompute")
    found = stored_arrays(merged)
    change = (trained.exact["first.weight"] - Layers().first.weight.double()).detach().numpy()
    exact = integers * np.repeat(scale, 4, axis=1).astype(np.float64) + change
    needed = np.abs(exact.reshape(10, 3, 4)).max(2) / 7
    np.testing.assert_allclose(found["w_scale"], needed, rtol=0.02)  # 4 bits take no -8 unless they had one
    floats = found["w"].astype(np.float64) * np.repeat(found["w_scale"], 4, axis=1)
    assert np.abs(floats - exact).max() <= 0.500001 * found["w_scale"].max()


def test_the_change_of_integers_is_reported(trained: Any, command: Any, tmp_path: Path) -> None:
    graph, integers, scale = per_channel(tmp_path / "base.onnx")
    options = (graph, trained.folder, "--base-weights", trained.base, "--scales", "keep", "--dry-run")
    result = command(*options, "--json")
    assert result.exit_code == 0, result.output
    targets = {target["weight"]: target for target in json.loads(result.stdout)["targets"]}
    report = targets["first.weight"]["integers"]
    change = (trained.exact["first.weight"] - Layers().first.weight.double()).detach().numpy()
    wanted = np.rint(integers + change / scale.astype(np.float64)[:, None])
    assert report["clipped"] == pytest.approx(float(np.mean(np.abs(wanted) > 127)))
    assert report["changed"] == pytest.approx(float(np.mean(np.clip(wanted, -127, 127) != integers)))
    assert (report["smallest_factor"], report["largest_factor"]) == (1.0, 1.0)
    assert "clipped" in command(*options).stdout


def test_scales_without_integers_are_refused(trained: Any, refused: Any, tmp_path: Path) -> None:
    assert "float weights" in refused(trained.base, trained.folder, "--scales", "keep")
    graph, _, _ = per_channel(tmp_path / "base.onnx")
    words = refused(graph, trained.folder)
    assert "give the checkpoint that it was exported from" in words
