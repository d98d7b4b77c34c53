"""Small graphs in text form, and what a pass makes of their outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.runtime.session import Session

Parsed: TypeAlias = Callable[..., onnx.ModelProto]
Applied: TypeAlias = Callable[..., ir.Model]
Arrays: TypeAlias = Callable[..., npt.NDArray[np.float32]]


@pytest.fixture
def random_array() -> Arrays:
    """Makes float32 arrays of a given shape, always the same for the same arguments."""

    def make(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
        return np.random.default_rng([seed, *shape]).normal(0.0, 0.7, shape).astype(np.float32)

    return make


@pytest.fixture
def parsed() -> Parsed:
    """Parses a graph and stores the given arrays as its initializers."""

    def make(text: str, *, opset: int = 17, ir_version: int = 8, **tensors: npt.NDArray[Any]) -> onnx.ModelProto:
        proto = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> {text}')
        proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
        for node in proto.graph.node:
            node.name = f"/{node.output[0]}/{node.op_type}"
        return proto

    return make


@pytest.fixture
def applied() -> Applied:
    """Applies passes to a model and checks on the way that its outputs stay what they were."""

    def apply(proto: onnx.ModelProto, *passes: ir.passes.PassBase, tolerance: float = 2e-5) -> ir.Model:
        model = ir.from_proto(proto)
        for graph_pass in passes:
            model = graph_pass(model).model
        expected, got = _run(proto), _run(ir.to_proto(model))
        assert list(got) == list(expected)
        for name, values in expected.items():
            assert got[name].shape == values.shape
            assert got[name].dtype == values.dtype
            np.testing.assert_allclose(got[name], values, rtol=tolerance, atol=tolerance, err_msg=name)
        return model

    return apply


def _run(proto: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    session = Session(proto.SerializeToString(), threads=1, level="none")
    stored = {tensor.name for tensor in proto.graph.initializer}
    rng = np.random.default_rng(23)
    feeds = {}
    for spec in session.inputs:
        if spec.name not in stored:
            shape = [length if isinstance(length, int) else 2 for length in spec.shape or ()]
            feeds[spec.name] = rng.normal(0.3, 1.5, shape).astype(spec.dtype)
    return session.run(feeds)
