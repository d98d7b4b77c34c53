from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest


@pytest.fixture
def mixed(run: Any, network: Path, images: Path) -> Path:
    """The network in integers, but for the Conv in its middle."""
    options = ("--calib-data", "data.npz", "--effort", "fast", "--exclude", "n_c2", "-o", "q.onnx")
    result = run("quantize", "net.onnx", *options)
    assert result.code == 0, result.err
    return network.parent / "q.onnx"


def _kernels(path: Path) -> Counter[str]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path.with_suffix(".rewritten"))
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def test_integers_and_floats_take_turns(split: Any, mixed: Path, images: Path) -> None:
    report = split("q.onnx", "--at-integer-borders", "--data", "data.npz")
    assert [part["kind"] for part in report["parts"]] == ["integers", "floats", "integers"]
    assert report["bit_equal"]


def test_every_kernel_of_the_whole_runs_in_a_part(split: Any, mixed: Path) -> None:
    report = split("q.onnx", "--at-integer-borders")
    parts = [_kernels(mixed.parent / "parts" / part["file"]) for part in report["parts"]]
    whole = _kernels(mixed)
    assert whole["QLinearConv"] == 2
    for kernel in ("QLinearConv", "QLinearAdd", "QGemm", "Conv", "QuantizeLinear"):
        assert sum(part[kernel] for part in parts) == whole[kernel], kernel
    assert "QLinearConv" not in parts[1]


def test_tensors_are_handed_over_in_integers(split: Any, mixed: Path) -> None:
    report = split("q.onnx", "--at-integer-borders")
    for part in report["parts"][1:]:
        model = onnx.load(mixed.parent / "parts" / part["file"])
        assert {value.type.tensor_type.elem_type for value in model.graph.input} == {onnx.TensorProto.UINT8}


def test_parts_agree_with_the_whole_on_samples(split: Any, mixed: Path, images: Path, run_by_hand: Any) -> None:
    split("q.onnx", "--at-integer-borders")
    feeds = {"image": np.load(images)["image"][:5]}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = ort.InferenceSession(str(mixed), options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    (found,) = run_by_hand(mixed.parent / "parts" / "q.split.json", feeds).values()
    np.testing.assert_array_equal(found, expected)


def test_the_table_says_what_each_part_runs_on(run: Any, mixed: Path) -> None:
    result = run("split", "q.onnx", "--at-integer-borders", "-o", "parts")
    assert result.code == 0, result.err
    assert "floats" in result.out
    assert "bit-identical" in result.out
