"""The tests that run models in OpenVINO, and the networks for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

SHAPES: Mapping[str, tuple[int, ...]] = {
    "w1": (32, 16, 3, 3),
    "w2": (32, 32, 3, 3),
    "w3": (32, 32, 3, 3),
    "wt": (32, 32, 2, 2),
    "wg": (10, 32),
    "wm": (32, 48),
    "b1": (32,),
    "b2": (32,),
    "b3": (32,),
    "bg": (10,),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = importlib.util.find_spec("openvino") is None
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.openvino)
        if missing:
            item.add_marker(pytest.mark.skip(reason="openvino not installed: make test-openvino"))


Network: TypeAlias = Callable[[str, str], Path]


@pytest.fixture
def network(tmp_path: Path) -> Network:
    """Writes a network of 16 channels that the text computes ``y`` of, with random weights, and data beside it.

    Nodes are called after what they compute.
    """

    def write(name: str, text: str) -> Path:
        header = '<ir_version: 8, opset_import: ["" : 17]> g (float[n,16,16,16] x) => (float[] y)'
        proto = parser.parse_model(f"{header} {{ {text} }}")
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        rng = np.random.default_rng(0)
        read = {source for node in proto.graph.node for source in node.input}
        for tensor, shape in SHAPES.items():
            if tensor in read:
                width = 0.1 if len(shape) == 1 else float(np.prod(shape[1:])) ** -0.5
                array = rng.normal(0.0, width, shape).astype(np.float32)
                proto.graph.initializer.append(numpy_helper.from_array(array, tensor))
        for node in proto.graph.node:
            node.name = node.output[0]
        path = tmp_path / name
        onnx.save(proto, path)
        np.savez(tmp_path / "data.npz", x=rng.normal(0.0, 1.0, (12, 16, 16, 16)).astype(np.float32))
        return path

    return write


@pytest.fixture
def in_openvino() -> Callable[[Path, np.ndarray], np.ndarray]:
    """Runs a model in OpenVINO itself, without any of qtool, and returns its first output."""

    def outputs(path: Path, x: np.ndarray) -> np.ndarray:
        import openvino

        compiled: Any = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found: np.ndarray = compiled.create_infer_request().infer({0: x}).to_tuple()[0]
        return found

    return outputs
