"""Which operators run on blocks of channels, beside where onnxruntime puts its ReorderInput and ReorderOutput."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser, shape_inference

from qtool.runtime.session import Session
from qtool.search.blocked_layout import blocked_nodes

_CONSTANTS = {
    "w": np.random.default_rng(0).normal(0, 0.1, (16, 16, 3, 3)),
    "wide": np.random.default_rng(1).normal(0, 0.1, (16, 32, 3, 3)),
    "three": np.array(3.0),
    "zero": np.array(0.0),
    "six": np.array(6.0),
    "per_channel": np.full(16, 0.5),
}


def _model(body: str) -> onnx.ModelProto:
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[1,16,16,16] x) => (float[a,b,c,d] y) {{ {body} }}'
    )
    used = {name for node in proto.graph.node for name in node.input}
    for name in sorted(used & _CONSTANTS.keys()):
        proto.graph.initializer.append(numpy_helper.from_array(_CONSTANTS[name].astype(np.float32), name))
    for node in proto.graph.node:
        node.name = node.output[0]
    return shape_inference.infer_shapes(proto)


def _reorders(proto: onnx.ModelProto) -> Counter[str]:
    """Returns the changes of layout that follow from ``blocked_nodes``."""
    values = {value.name: value for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)}
    shapes = {
        name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for name, value in values.items()
    } | {name: array.shape for name, array in _CONSTANTS.items()}
    model = ir.from_proto(proto)
    blocked = blocked_nodes(model, shapes)
    found: Counter[str] = Counter()
    for value in {value for node in model.graph for value in (*node.inputs, *node.outputs) if value is not None}:
        producer = value.producer()
        into = [use.node.name in blocked for use in value.uses()]
        if value.is_graph_output():
            into.append(False)
        if value.name in _CONSTANTS:
            continue
        if producer is not None and producer.name in blocked:
            found["ReorderOutput"] += not all(into)
        else:
            found["ReorderInput"] += any(into)
    return found


@pytest.mark.parametrize("before", ["", "m = MaxPool <kernel_shape = [1,1]> (a)", "m = Exp (a)"])
@pytest.mark.parametrize(
    "operator",
    [
        "Relu ({0})",
        "Sigmoid ({0})",
        "Tanh ({0})",
        "HardSigmoid ({0})",
        "HardSwish ({0})",
        "Concat <axis = 0> ({0}, {0})",
        "Concat <axis = 1> ({0}, {0})",
        "Clip ({0}, zero, six)",
        "LeakyRelu ({0})",
        "Elu ({0})",
        "Erf ({0})",
        "Add ({0}, {0})",
        "Mul ({0}, {0})",
        "Sub ({0}, {0})",
        "Sum ({0}, {0})",
        "Add ({0}, three)",
        "Div ({0}, three)",
        "Mul ({0}, p)",
        "MaxPool <kernel_shape = [2,2]> ({0})",
        "AveragePool <kernel_shape = [2,2]> ({0})",
        "GlobalAveragePool ({0})",
        "GlobalMaxPool ({0})",
        "BatchNormalization ({0}, per_channel, per_channel, per_channel, per_channel)",
    ],
)
def test_the_layout_changes_where_onnxruntime_changes_it(operator: str, before: str, tmp_path: Path) -> None:
    given = "m" if before else "a"
    pooled = f"p = GlobalAveragePool ({given})" if "p)" in operator else ""
    proto = _model(
        f"a = Conv <pads = [1,1,1,1]> (x, w) {before} {pooled} b = {operator.format(given)} "
        f"y = Conv <pads = [1,1,1,1]> (b, {'wide' if 'axis = 1' in operator else 'w'})"
    )
    Session(proto.SerializeToString(), optimized_to=tmp_path / "optimized.onnx")
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    if not kernels["ReorderInput"]:
        pytest.skip("onnxruntime has no such layout on this processor")
    assert _reorders(proto) == {kind: kernels[kind] for kind in ("ReorderInput", "ReorderOutput")}


def test_products_and_rows_have_no_channels() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> '
        "g (float[1,4,8,8] x) => (float[1,4,8,8] y) { m = MatMul (x, x) y = Relu (m) }"
    )
    assert blocked_nodes(ir.from_proto(proto), dict.fromkeys("xmy", (1, 4, 8, 8))) == frozenset()
