"""Additions in front of normalizations, which onnxruntime would join into a slower kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from qtool.backends.onnxruntime_cpu.residual_sums import ResidualSums
from qtool.qdq.remove_qdq import RemoveQdq
from qtool.runtime.session import Session

Parsed = Callable[..., onnx.ModelProto]
Applied = Callable[..., ir.Model]
Arrays = Callable[..., npt.NDArray[np.float32]]

_BLOCK = """
g (float[1,4,8] x, float[1,4,8] r) => (float[1,4,8] y) {
    a = Add (x, r)
    n = LayerNormalization <axis = -1> (a, gamma, beta)
    m = MatMul (n, w)
    b = Add (m, a)
    y = LayerNormalization <axis = -1> (b, gamma, beta)
}
"""


@pytest.fixture
def block(parsed: Parsed, random_array: Arrays) -> onnx.ModelProto:
    model = parsed(_BLOCK, gamma=random_array(8), beta=random_array(8, seed=1), w=random_array(8, 8))
    return onnx.shape_inference.infer_shapes(model)


def _run_by_onnxruntime(model: onnx.ModelProto, folder: Path) -> list[str]:
    Session(model.SerializeToString(), level="extended", optimized_to=folder / "optimized.onnx")
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def test_onnxruntime_leaves_them_alone(block: onnx.ModelProto, applied: Applied, tmp_path: Path) -> None:
    assert "SkipLayerNormalization" in _run_by_onnxruntime(block, tmp_path)
    after = ir.to_proto(applied(block, ResidualSums()))
    assert [node.op_type for node in after.graph.node] == _run_by_onnxruntime(after, tmp_path)
    assert [node.op_type for node in after.graph.node].count("Sum") == 2


def test_the_names_of_nodes_and_tensors_stay(block: onnx.ModelProto, applied: Applied) -> None:
    after = ir.to_proto(applied(block, ResidualSums()))
    assert [(node.name, *node.output) for node in after.graph.node] == [
        (node.name, *node.output) for node in block.graph.node
    ]


def test_dequantizing_makes_additions_of_them_again(block: onnx.ModelProto, applied: Applied) -> None:
    after = applied(block, ResidualSums(), RemoveQdq())
    assert [node.op_type for node in after.graph].count("Add") == 2


def test_other_additions_stay(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed("g (float[1,4,8] x, float[1,4,8] r) => (float[1,4,8] y) { a = Add (x, r) y = Relu (a) }")
    assert [node.op_type for node in applied(model, ResidualSums()).graph] == ["Add", "Relu"]
    halves = parsed(
        "g (float16[1,4,8] x, float16[1,4,8] r) => (float16[1,4,8] y)"
        " { a = Add (x, r) y = LayerNormalization (a, gamma) }",
        gamma=random_array(8).astype(np.float16),
    )
    assert next(node.op_type for node in ResidualSums()(ir.from_proto(halves)).model.graph) == "Add"
