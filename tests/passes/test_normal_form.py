"""Graphs of every exporter come into one form: opset, constants, functions, names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from qtool.errors import InputError
from qtool.passes.normalization.normalize import ConstantsToInitializers, InlineFunctions, Tidy
from qtool.passes.normalization.raise_opset import LOWEST_OPSET, RaiseOpset
from qtool.passes.quantization.explicit_bias import ExplicitBias
from qtool.passes.quantization.fold_constants import FoldConstants
from qtool.passes.quantization.fold_weight_transposes import FoldWeightTransposes
from qtool.passes.quantization.matmul_add_to_gemm import MatMulAddToGemm
from tests.graphs_read import operators_of

Parsed = Callable[..., onnx.ModelProto]
Applied = Callable[..., ir.Model]
Arrays = Callable[..., npt.NDArray[np.float32]]


# --- opset


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12])
def test_an_old_model_is_raised_and_computes_the_same(
    parsed: Parsed, applied: Applied, random_array: Arrays, opset: int
) -> None:
    model = parsed(
        """g (float[2,3,8,8] x) => (float[2,4,6,6] y, float[2,144] z, float[2,4,6] m) {
            a = Conv <kernel_shape = [3,3]> (x, w)
            b = BatchNormalization (a, s, s, s, s)
            y = LeakyRelu <alpha = 0.1> (b)
            z = Flatten (y)
            m = ReduceMean <axes = [3], keepdims = 0> (y)
        }""",
        opset=opset,
        ir_version=4,
        w=random_array(4, 3, 3, 3),
        s=np.array([0.5, 1.0, 1.5, 2.0], np.float32),
    )
    assert applied(model, RaiseOpset()).opset_imports[""] == LOWEST_OPSET


@pytest.mark.parametrize("opset", [9, 11])
def test_operators_whose_attributes_became_inputs_are_converted(parsed: Parsed, applied: Applied, opset: int) -> None:
    model = parsed(
        """g (float[2,4,6] x) => (float[2,2,6] first, float[2,2,6] second, float[2,1,4,6] wide, float[4,6] row) {
            first, second = Split <axis = 1, split = [2,2]> (x)
            wide = Unsqueeze <axes = [1]> (x)
            s = ReduceSum <axes = [0]> (x)
            row = Squeeze <axes = [0]> (s)
        }""",
        opset=opset,
        ir_version=4,
    )
    after = applied(model, RaiseOpset())
    assert after.opset_imports[""] == LOWEST_OPSET
    assert all("axes" not in node.attributes and "split" not in node.attributes for node in after.graph)


def test_a_raised_model_of_an_old_file_format_is_valid(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed(
        "g (float[2,3,8] x, float[4,3,3] w) => (float[2,4,6] y) { y = Conv <kernel_shape = [3]> (x, w) }",
        opset=8,
        ir_version=3,
        w=random_array(4, 3, 3),
    )
    after = applied(model, RaiseOpset(), ConstantsToInitializers())
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    assert [value.name for value in after.graph.inputs] == ["x"]


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_a_newer_opset_is_kept(parsed: Parsed, applied: Applied, opset: int) -> None:
    model = parsed("g (float[2,3] x) => (float[2,3] y) { y = Relu (x) }", opset=opset)
    assert applied(model, RaiseOpset()).opset_imports[""] == opset


@pytest.mark.parametrize("opset", [9, 10])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [2.0, 1.7])
def test_old_resizing_keeps_its_coordinates(
    parsed: Parsed, applied: Applied, opset: int, mode: str, scale: float
) -> None:
    operator = "Upsample" if opset == 9 else "Resize"
    model = parsed(
        f'g (float[1,2,5,6] x) => (float[1,2,H,W] y) {{ y = {operator} <mode = "{mode}"> (x, scales) }}',
        opset=opset,
        ir_version=4,
        scales=np.array([1.0, 1.0, scale, scale], np.float32),
    )
    assert "Resize" in operators_of(applied(model, RaiseOpset()))


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_old_softmax_keeps_its_axes(parsed: Parsed, applied: Applied, axis: int) -> None:
    # Before opset 13 it normalized over its axis and all that follow.
    model = parsed(
        f"g (float[2,3,4] x) => (float[2,3,4] y) {{ y = Softmax <axis = {axis}> (x) }}", opset=11, ir_version=4
    )
    applied(model, RaiseOpset())


@pytest.mark.parametrize(("operator", "opset"), [("Scan", 8), ("Affine", 1), ("Unheard", 9)])
def test_an_opset_that_cannot_be_raised_is_an_error_with_a_fix(operator: str, opset: int) -> None:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 1, 2, 2])],
        [helper.make_tensor_value_info("y", 1, [1, 1, 2, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)
    with pytest.raises(InputError, match=f"opset {opset} cannot be raised") as caught:
        RaiseOpset()(ir.from_proto(model))
    assert "export" in caught.value.fix


# --- constants


def test_constants_of_every_kind_become_initializers(parsed: Parsed, applied: Applied) -> None:
    model = parsed(
        """g (float[2,3] x) => (float[2,3] y, float[6] z) {
            tensor = Constant <value = float[3] {1.0, 2.0, 3.0}> ()
            copy = Identity (tensor)
            number = Constant <value_float = 0.5> ()
            shape = Constant <value_ints = [-1]> ()
            a = Mul (x, copy)
            y = Add (a, number)
            z = Reshape (y, shape)
        }"""
    )
    after = applied(model, ConstantsToInitializers())
    assert operators_of(after) == ["Mul", "Add", "Reshape"]
    assert len(after.graph.initializers) == 3


def test_initializers_leave_the_inputs(parsed: Parsed, applied: Applied) -> None:
    model = parsed("g (float[2,3] x, float[3] c) => (float[2,3] y) { y = Mul (x, c) }", c=np.ones(3, np.float32))
    after = applied(model, ConstantsToInitializers())
    assert [value.name for value in after.graph.inputs] == ["x"]
    assert list(after.graph.initializers) == ["c"]


def test_expressions_of_constants_are_computed_at_once(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed(
        """g (float[2,3,4] x) => (float[2,3,4] y, float[2,12] z) {
            a = Add (p, q)
            b = Sqrt (a)
            y = Mul (x, b)
            s = Shape (x)
            n = Gather (s, zero)
            one = Unsqueeze (n, axis)
            shape = Concat <axis = 0> (one, rest)
            z = Reshape (y, shape)
        }""",
        p=np.abs(random_array(4)),
        q=np.abs(random_array(4, seed=1)),
        zero=np.array(0, np.int64),
        axis=np.array([0], np.int64),
        rest=np.array([-1], np.int64),
    )
    assert operators_of(applied(model, FoldConstants())) == ["Mul", "Reshape"]


def test_what_does_nothing_disappears_without_a_trace(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed(
        """g (float[2,3,4] x) => (float[2,3,4] y) {
            a = Mul (x, one)
            b = Add (zero, a)
            c = Sub (b, zero)
            d = Div (c, one)
            e = Dropout (d)
            f = Cast <to = 1> (e)
            g = Transpose <perm = [0,2,1]> (f)
            h = Transpose <perm = [0,2,1]> (g)
            y = Relu (h)
        }""",
        one=np.float32(1.0),
        zero=np.float32(0.0),
    )
    assert operators_of(applied(model, FoldConstants())) == ["Relu"]


def test_explicit_zero_padding_folds_into_the_convolution(
    parsed: Parsed, applied: Applied, random_array: Arrays
) -> None:
    model = parsed(
        """g (float[2,3,8,8] x) => (float[2,4,5,4] y) {
            p = Pad (x, pads)
            y = Conv <strides = [2,2]> (p, w)
        }""",
        pads=np.array([0, 0, 1, 1, 0, 0, 2, 0], np.int64),
        w=random_array(4, 3, 3, 3),
    )
    assert operators_of(applied(model, FoldConstants())) == ["Conv"]


@pytest.mark.parametrize(("mode", "fill"), [("reflect", 0.0), ("edge", 0.0), ("constant", 1.5)])
def test_padding_with_something_else_is_left_alone(
    parsed: Parsed, applied: Applied, random_array: Arrays, mode: str, fill: float
) -> None:
    model = parsed(
        f"""g (float[2,3,8,8] x) => (float[2,4,8,8] y) {{
            p = Pad <mode = "{mode}"> (x, pads, fill)
            y = Conv (p, w)
        }}""",
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        fill=np.float32(fill),
        w=random_array(4, 3, 3, 3),
    )
    assert "Pad" in operators_of(applied(model, FoldConstants()))


# --- weights


def test_the_transpose_of_a_weight_is_stored(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed(
        "g (float[2,5,6] x) => (float[2,5,4] y) { t = Transpose <perm = [1,0]> (w) y = MatMul (x, t) }",
        w=random_array(4, 6),
    )
    assert operators_of(applied(model, FoldWeightTransposes())) == ["MatMul"]


def test_the_default_transpose_reverses_the_axes(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed(
        "g (float[2,6] x) => (float[2,4] y) { t = Transpose (w) y = Gemm (x, t) }",
        w=random_array(4, 6),
    )
    assert operators_of(applied(model, FoldWeightTransposes())) == ["Gemm"]


def test_a_tied_weight_stays_one_tensor(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed(
        """g (float[2,6] x) => (float[2,6] y) {
            a = Gemm <transB = 1> (x, w)
            t = Transpose (w)
            b = Transpose (t)
            y = MatMul (a, b)
        }""",
        w=random_array(6, 6),
    )
    after = applied(model, FoldWeightTransposes())
    assert list(after.graph.initializers) == ["w"]


@pytest.mark.parametrize("bias_first", [True, False])
def test_matmul_and_add_become_gemm(parsed: Parsed, applied: Applied, random_array: Arrays, bias_first: bool) -> None:
    model = parsed(
        f"g (float[N,6] x) => (float[N,4] y) {{ a = MatMul (x, w) y = Add ({'b, a' if bias_first else 'a, b'}) }}",
        w=random_array(6, 4),
        b=random_array(4),
    )
    assert operators_of(applied(model, Tidy(), MatMulAddToGemm())) == ["Gemm"]


def test_a_matmul_of_more_dimensions_stays_a_matmul(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed(
        "g (float[N,T,6] x) => (float[N,T,4] y) { a = MatMul (x, w) y = Add (a, b) }",
        w=random_array(6, 4),
        b=random_array(4),
    )
    assert operators_of(applied(model, Tidy(), MatMulAddToGemm())) == ["MatMul", "Add"]


@pytest.mark.parametrize("layer", ["Conv (x, w)", "Gemm (f, v)", "Gemm <transB = 1> (f, u)"])
def test_a_layer_without_a_bias_gets_a_zero_one(
    parsed: Parsed, applied: Applied, random_array: Arrays, layer: str
) -> None:
    model = parsed(
        f"""g (float[2,3,1] x) => (float[2,4] y) {{
            f = Flatten (x)
            a = {layer}
            y = Reshape (a, shape)
        }}""",
        w=random_array(4, 3, 1),
        v=random_array(3, 4),
        u=random_array(4, 3),
        shape=np.array([2, 4], np.int64),
    )
    after = applied(model, ExplicitBias())
    node = next(node for node in after.graph if node.op_type in ("Conv", "Gemm"))
    bias = node.inputs[2]
    assert bias is not None
    assert bias.const_value is not None
    assert bias.const_value.numpy().tolist() == [0.0] * 4


# --- functions, names, leftovers


def test_functions_are_inlined_even_inside_each_other(applied: Applied) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
            y = local.Outer (x)
            z = local.Inner (y)
        }
        <domain: "local", opset_import: ["" : 17]>
        Inner (v) => (w) { s = Sigmoid (v) w = Mul (v, s) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]>
        Outer (v) => (w) { i = local.Inner (v) w = local.Inner (i) }"""
    )
    after = applied(model, InlineFunctions())
    assert operators_of(after) == ["Sigmoid", "Mul"] * 3
    assert not after.functions
    assert set(after.opset_imports) == {""}


def test_unused_nodes_go_and_names_are_given(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed(
        """g (float[N,4] x) => (float[N,4] y) {
            unused = Tanh (x)
            a = Mul (x, c)
            y = Relu (a)
        }""",
        c=random_array(4),
        nobody=random_array(9),
    )
    for node in model.graph.node:
        node.name = ""
    after = applied(model, Tidy())
    assert operators_of(after) == ["Mul", "Relu"]
    assert list(after.graph.initializers) == ["c"]
    names = [node.name for node in after.graph]
    assert all(names)
    assert len(set(names)) == 2
