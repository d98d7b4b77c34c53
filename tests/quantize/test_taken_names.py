"""New nodes and tensors get names that a model has not used, whatever these are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

Save = Callable[..., Path]

_CHANNELS = 64
_GRAPH = """
g (float[n,3,8,8] image, float[n,6] row) => (float[n,5] scores, float[n,4,k] tokens) {
    a = Conv <pads = [1,1,1,1]> (image, w1, b1)
    b = HardSwish (a)
    c = Conv (b, w2)
    d = MaxPool <kernel_shape = [2,2], strides = [2,2]> (c)
    e = ConvTranspose <strides = [2,2], kernel_shape = [2,2]> (d, w3)
    f = Conv (e, w4, b4)
    m = ReduceMean <keepdims = 0> (f, spatial)
    l = MatMul (row, v)
    r = Relu (l)
    both = Add (m, r)
    scores = Gemm (both, w5, b5)
    steps = Reshape (both, to_steps)
    tokens = Einsum <equation = "bij,kj->bik"> (steps, w6)
}
"""


def _tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    return {
        "w1": normal(8, 3, 3, 3),
        "b1": normal(8),
        "w2": normal(_CHANNELS, 8, 1, 1),
        "w3": normal(_CHANNELS, 4, 2, 2),
        "w4": normal(8, 4, 1, 1),
        "b4": normal(8),
        "v": normal(6, 8),
        "w5": normal(8, 5),
        "b5": normal(5),
        "w6": normal(7, 2),
        "to_steps": np.array([0, 4, 2]),
        "spatial": np.array([2, 3]),
    }


def _feeds(seed: int, samples: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image, row = rng.normal(0, 1, (samples, 3, 8, 8)), rng.normal(0, 1, (samples, 6))
    return {"image": image.astype(np.float32), "row": row.astype(np.float32)}


def _names(model: onnx.ModelProto) -> tuple[set[str], set[str]]:
    nodes = {node.name for node in model.graph.node}
    values = {name for node in model.graph.node for name in node.output}
    return nodes, values | {tensor.name for tensor in model.graph.initializer}


def _with_taken(model: onnx.ModelProto, nodes: Iterable[str], values: Iterable[str]) -> None:
    """Adds a chain of Tanh from an input to an output of its own, whose nodes and tensors have the given names."""
    source = "row"
    names = [*((node, f"t{count}") for count, node in enumerate(nodes)), *((f"n{v}", v) for v in values)]
    for node, value in names:
        model.graph.node.append(helper.make_node("Tanh", [source], [value], node))
        source = value
    model.graph.node.append(helper.make_node("Tanh", [source], ["last"], "n_last"))
    model.graph.output.append(helper.make_tensor_value_info("last", onnx.TensorProto.FLOAT, ["n", 6]))


def _scores(path: Path) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = _feeds(2, 6)
    if session.get_inputs()[0].shape[-1] == 3:
        feeds["image"] = feeds["image"].transpose(0, 2, 3, 1)
    return list(session.run(["scores", "tokens"], feeds))


@pytest.mark.parametrize(
    "command",
    [
        ["quantize", "--calib-data", "c.npz", "--target", "x86-avx2", "--effort", "fast", "--exclude", "n_c"],
        [
            "quantize",
            "--calib-data",
            "c.npz",
            "--target",
            "x86-avx2",
            "--effort",
            "fast",
            "--smoothquant",
            "--cle",
        ],
        ["quantize", "--calib-data", "c.npz", "--target", "qnn", "--effort", "fast"],
        ["quantize", "--calib-data", "c.npz", "--target", "tensorrt", "--effort", "fast"],
        ["quantize", "--scheme", "dynamic"],
        ["convert", "--fp16"],
        ["optimize", "--io-layout", "nhwc"],
        ["optimize", "--data", "c.npz"],
    ],
)
def test_names_that_a_command_would_give_may_be_taken(run: Any, save: Save, tmp_path: Path, command: list[str]) -> None:
    np.savez(tmp_path / "c.npz", **_feeds(1, 24))
    path = save("net.onnx", _GRAPH, **_tensors())
    outcome = run(command[0], path, *command[1:], "-o", "out.onnx")
    assert outcome.code == 0, outcome.err
    before, after = _names(onnx.load(path)), _names(onnx.load("out.onnx"))
    model = onnx.load(path)
    _with_taken(model, sorted(after[0] - before[0]), sorted(after[1] - before[1]))
    onnx.checker.check_model(model)
    onnx.save(model, "taken.onnx")
    outcome = run(command[0], "taken.onnx", *command[1:], "-o", "again.onnx")
    assert outcome.code == 0, outcome.err
    onnx.checker.check_model("again.onnx")
    for expected, result in zip(_scores(Path("out.onnx")), _scores(Path("again.onnx")), strict=True):
        np.testing.assert_allclose(result, expected, atol=0.05)
