"""Graphs with Transpose nodes, and what onnxruntime makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

Graph: TypeAlias = Callable[..., onnx.ModelProto]
Outputs: TypeAlias = Callable[[onnx.ModelProto, Mapping[str, np.ndarray]], list[np.ndarray]]


@pytest.fixture
def graph() -> Graph:
    """Makes a model of the text of a graph and its tensors."""

    def call(text: str, *, opset: int = 18, **tensors: np.ndarray) -> onnx.ModelProto:
        model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
        model.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in tensors.items())
        for node in model.graph.node:
            node.name = f"n_{node.output[0]}"
        onnx.checker.check_model(model)
        return model

    return call


@pytest.fixture
def outputs() -> Outputs:
    """Runs a model as it is written."""

    def call(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_outputs()] == [value.name for value in model.graph.output]
        return session.run(None, dict(feeds))

    return call


@pytest.fixture
def rewritten() -> Callable[[onnx.ModelProto, Any], onnx.ModelProto]:
    """Runs a pass over a copy of a model."""

    def call(model: onnx.ModelProto, layout_pass: Any) -> onnx.ModelProto:
        copy = ir.from_proto(model)
        layout_pass(copy)
        return ir.to_proto(copy)

    return call


@pytest.fixture
def count() -> Callable[[onnx.ModelProto], int]:
    """Counts the Transpose nodes of a model."""
    return lambda model: sum(node.op_type == "Transpose" for node in model.graph.node)
