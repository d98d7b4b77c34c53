import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from qtool.cli.app import app

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``qtool inspect`` in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def inspect(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["inspect", *arguments])

    return inspect


@pytest.fixture
def facts(run: Run) -> Callable[..., dict[str, Any]]:
    """Runs ``qtool inspect --json`` and returns what it says."""

    def inspect(*arguments: str) -> dict[str, Any]:
        result = run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        value: dict[str, Any] = json.loads(result.stdout)
        return value

    return inspect


def _value(name: str, dims: list[int | str]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)


@pytest.fixture
def network(run: Run, tmp_path: Path) -> Path:
    """A grouped Conv, a ConvTranspose, a Gemm and a MatMul on ``image`` (batch, 4, side, 10)."""
    weights = {
        "conv.w": np.ones((6, 2, 3, 3), np.float32),
        "up.w": np.ones((6, 4, 2, 2), np.float32),
        "gemm.w": np.ones((7, 4), np.float32),
        "last.w": np.ones((7, 5), np.float32),
        "flat": np.array([0, -1], np.int64),
    }
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["image", "conv.w"], ["a"], group=2, pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"]),
        node("ConvTranspose", ["b", "up.w"], ["c"], strides=[2, 2]),
        node("GlobalAveragePool", ["c"], ["d"]),
        node("Reshape", ["d", "flat"], ["e"]),
        node("Gemm", ["e", "gemm.w"], ["f"], transB=1),
        node("MatMul", ["f", "last.w"], ["scores"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [_value("image", ["batch", 4, "side", 10])],
        [_value("scores", ["batch", 5])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "network.onnx"
    opset = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.example", 2)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="tests"), path)
    return path


@pytest.fixture
def quantized(run: Run, tmp_path: Path) -> Path:
    """Two MatMul of 1000 weights each, the first one between Q/DQ with int8 weights, on ``x`` (batch, 10)."""
    node, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["x.q"]),
        node("DequantizeLinear", ["x.q", "s", "z"], ["x.d"]),
        node("DequantizeLinear", ["w.q", "s", "zw"], ["w.d"]),
        node("MatMul", ["x.d", "w.d"], ["h"]),
        node("MatMul", ["h", "v"], ["y"]),
    ]
    stored = [
        tensor(np.float32(0.1), "s"),
        tensor(np.uint8(128), "z"),
        tensor(np.int8(0), "zw"),
        tensor(np.ones((10, 100), np.int8), "w.q"),
        tensor(np.ones((100, 10), np.float32), "v"),
    ]
    graph = onnx.helper.make_graph(nodes, "q", [_value("x", ["batch", 10])], [_value("y", ["batch", 10])], stored)
    path = tmp_path / "quantized.onnx"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path
