"""The torch program of a graph computes what onnxruntime computes, operator by operator."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import parser

from qtool.errors import InputError
from qtool.passes.normalization.normalize import ConstantsToInitializers
from qtool.workflows.convert.targets.tflite.elementwise import ELEMENTWISE
from qtool.workflows.convert.targets.tflite.graph_program import GraphProgram
from qtool.workflows.convert.targets.tflite.layers import LAYERS
from qtool.workflows.convert.targets.tflite.tables import dequantize_before_gather
from qtool.workflows.convert.targets.tflite.views import VIEWS

_UNARY = "Abs Ceil Cos Erf Exp Floor HardSwish Identity Log Neg Reciprocal Relu Round Sigmoid Sin Softplus Sqrt Tanh"
_BINARY = "Add Div Max Min Mul Sub Sum Pow"
_TRUTH = "Equal Greater GreaterOrEqual Less LessOrEqual"
# What stands in the body of a graph of x and v (2, 4, 6, 6), and w (4, 2, 3, 3) with b (4) as constants.
_BODIES = [
    *(f"y = {name}(x)" for name in _UNARY.split()),
    *(f"y = {name}(x, v)" for name in _BINARY.split()),
    *(f"t = {name}(x, v) y = Cast<to = 1>(t)" for name in _TRUTH.split()),
    "p = Less(x, v) q = Greater(x, v) t = Or(p, q) s = And(t, p) r = Not(s) y = Where(r, x, v)",
    "y = Dropout(x)",
    "y = Elu<alpha = 0.7>(x)",
    "y = Gelu(x)",
    'y = Gelu<approximate = "tanh">(x)',
    "y = HardSigmoid<alpha = 0.3>(x)",
    "y = LeakyRelu<alpha = 0.2>(x)",
    "y = PRelu(x, s4)",
    "y = Softmax<axis = 1>(x)",
    "y = LogSoftmax<axis = -1>(x)",
    "y = Clip(x, zero, six)",
    "y = Clip(x, zero)",
    "y = Clip(x, low, six)",
    "y = ReduceL2(x, a23)",
    "y = ReduceMax<keepdims = 0>(x, a23)",
    "y = ReduceMean(x, a23)",
    "y = ReduceMin(x)",
    "y = ReduceProd(x, a23)",
    "y = ReduceSum<noop_with_empty_axes = 1>(x)",
    "y = Conv<group = 2, pads = [0, 1, 2, 1], strides = [2, 1]>(x, w, b)",
    'y = Conv<group = 2, auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w)',
    'y = Conv<group = 2, auto_pad = "VALID", dilations = [2, 2]>(x, w)',
    "y = ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]>(x, w)",
    "t = Flatten(x) y = Gemm<transB = 1>(t, w144, b)",
    "t = Flatten(x) y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(t, w144, b)",
    "y = MatMul(x, m66)",
    "y = MatMul(x, v)",
    "y = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(x)",
    "y = MaxPool<kernel_shape = [3, 3], pads = [0, 0, 1, 1], strides = [2, 2]>(x)",
    "y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(x)",
    "y = AveragePool<kernel_shape = [2, 3], count_include_pad = 1, pads = [1, 0, 0, 1]>(x)",
    "y = GlobalAveragePool(x)",
    "y = GlobalMaxPool(x)",
    "y = BatchNormalization<epsilon = 0.01>(x, b, s4one, b, pos4)",
    "y = InstanceNormalization(x, b, s4one)",
    "y = LayerNormalization<axis = 3>(x, g6, g6)",
    "y = Reshape(x, to_rows)",
    "y = Flatten<axis = 2>(x)",
    "y = Transpose<perm = [0, 2, 3, 1]>(x)",
    "t = Unsqueeze(x, a13) y = Squeeze(t, a13)",
    "y = Concat<axis = -1>(x, v)",
    "s, t = Split<axis = 1>(x, sizes) y = Concat<axis = 1>(t, s)",
    "s, t = Split<axis = 2, num_outputs = 2>(x) y = Sub(t, s)",
    "y = Slice(x, starts, ends, a23, steps)",
    "y = Slice(x, backwards, behind, a23, minus)",
    "y = Gather<axis = 1>(x, picked)",
    "t = Flatten<axis = 3>(x) y = Gather(t, picked)",
    "t = Flatten<axis = 3>(x) y = GatherND(t, pairs)",
    "t = Flatten<axis = 3>(x) y = GatherElements<axis = 1>(t, pairs)",
    "t = ReduceMean(x, a23) y = Expand(t, to_all)",
    "y = Pad(x, pads, low)",
    'y = Pad<mode = "reflect">(x, sides, , a23)',
    'y = Pad<mode = "edge">(x, pads)',
    'y = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(x, , twice)',
    'y = Resize<mode = "linear">(x, , , larger)',
    'y = Resize<mode = "linear", coordinate_transformation_mode = "align_corners">(x, , , larger)',
    "y = DepthToSpace<blocksize = 2>(x)",
    'y = DepthToSpace<blocksize = 2, mode = "CRD">(x)',
    "t = Cast<to = 6>(x) y = Cast<to = 1>(t)",
    "y = Tile(x, repeats)",
]
_CONSTANTS = """
    zero = Constant<value_float = 0.0>() six = Constant<value_float = 6.0>() low = Constant<value_float = -0.3>()
    a23 = Constant<value_ints = [2, 3]>() a13 = Constant<value_ints = [1, 3]>()
    to_rows = Constant<value_ints = [0, -1]>() sizes = Constant<value_ints = [1, 3]>()
    starts = Constant<value_ints = [1, -5]>() ends = Constant<value_ints = [100, -1]>()
    steps = Constant<value_ints = [2, 3]>() minus = Constant<value_ints = [-1, -2]>()
    backwards = Constant<value_ints = [-1, 4]>() behind = Constant<value_ints = [-100, 0]>()
    to_all = Constant<value_ints = [2, 4, 3, 1]>() pads = Constant<value_ints = [0, 0, 1, 2, 0, 0, 0, 1]>()
    sides = Constant<value_ints = [1, 2, 0, 3]>() larger = Constant<value_ints = [2, 4, 9, 12]>()
    repeats = Constant<value_ints = [1, 2, 1, 3]>() picked = Constant<value_ints = [2, -1, 0]>()
    pairs = Constant<value = int64[3, 2] {1, 2, 0, 3, 5, 4}>()
    twice = Constant<value_floats = [1.0, 1.0, 2.0, 3.0]>()
"""
_OPSET = 21


def _model(body: str) -> onnx.ModelProto:
    text = f"""<ir_version: 10, opset_import: ["" : {_OPSET}]>
    net (float[2, 4, 6, 6] x, float[2, 4, 6, 6] v) => (float y) {{ {_CONSTANTS} {body} }}"""
    model = parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    generator = np.random.default_rng(3)
    shapes = {"w": (4, 2, 3, 3), "b": (4,), "m66": (6, 6), "w144": (4, 144), "s4": (4, 1, 1), "s4one": (4,), "g6": (6,)}
    for name, shape in {**shapes, "pos4": (4,)}.items():
        values = generator.standard_normal(shape).astype(np.float32)
        values = np.abs(values) + 0.1 if name == "pos4" else values
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    # Constants that the body does not read are not those of an operator that it has.
    read = {name for node in model.graph.node for name in node.input}
    kept = [node for node in model.graph.node if node.op_type != "Constant" or node.output[0] in read]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    return model


def _program(model: onnx.ModelProto) -> GraphProgram:
    graph = ir.from_proto(model)
    ConstantsToInitializers()(graph)
    return GraphProgram(graph).eval()


@pytest.mark.parametrize("body", _BODIES)
def test_an_operator_computes_what_onnxruntime_computes(body: str) -> None:
    model = _model(body)
    generator = np.random.default_rng(11)
    feeds = {name: generator.uniform(0.2, 2.0, (2, 4, 6, 6)).astype(np.float32) for name in ("x", "v")}
    if not any(name in body for name in ("Log(", "Sqrt", "Pow", "Reciprocal")):
        feeds["x"] = generator.standard_normal((2, 4, 6, 6)).astype(np.float32) * 3
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, feeds)
    with torch.no_grad():
        found = _program(model)(**{name: torch.from_numpy(array) for name, array in feeds.items()})["y"].numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_every_operator_of_the_tables_is_tried() -> None:
    tried = {node.op_type for body in _BODIES for node in _model(body).graph.node}
    assert {*ELEMENTWISE, *LAYERS, *VIEWS} <= tried


def test_a_table_of_integers_gives_the_same_rows_when_it_is_dequantized_first() -> None:
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        net (int64[2, 3] ids) => (float[2, 3, 4] y) <float s = {0.25}, uint8 z = {7}>
        { [rows] r = Gather(table, ids) [floats] y = DequantizeLinear(r, s, z) }"""
    )
    table = np.random.default_rng(5).integers(0, 256, (6, 4)).astype(np.uint8)
    model.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    ids = np.array([[0, 5, -1], [2, 2, 3]])
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"ids": ids})[0]
    np.testing.assert_array_equal(expected, (table[ids].astype(np.float32) - 7) * 0.25)
    graph = ir.from_proto(model)
    assert dequantize_before_gather(graph) == 1
    assert [node.op_type for node in graph.graph] == ["DequantizeLinear", "Gather"]
    with torch.no_grad():
        found = GraphProgram(graph).eval()(ids=torch.from_numpy(ids))["y"].numpy()
    np.testing.assert_array_equal(found, expected)


def test_an_operator_that_is_not_in_the_tables_is_named() -> None:
    with pytest.raises(InputError, match=r"'Mish_0' \(Mish\) cannot be converted"):
        _program(_model("y = Mish(x)"))
