"""Each operator gets the integers that its kernel reads, or a reason why it stays float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qtool.backends.targets import PRESETS
from qtool.calib.granularity import PerChannel, PerTensor
from tests.graphs_read import integer_operators, plan_of, reason_of

_X86 = PRESETS["x86"]

Arrays = Callable[..., npt.NDArray[np.float32]]
Prepared = Callable[..., ir.Model]


# --- layers: granularity and form


@pytest.mark.parametrize(("transposed", "axis"), [(0, 1), (1, 0)])
def test_gemm_weights_have_one_scale_an_output(
    prepared: Prepared, random_array: Arrays, transposed: int, axis: int
) -> None:
    model = prepared(
        f"g (float[N,6] x) => (float[N,3] y) {{ y = Gemm <transB = {transposed}> (x, w, b) }}",
        w=random_array(*((3, 6) if transposed else (6, 3))),
        b=random_array(3),
    )
    assert [weight.granularity for weight in plan_of(model).weights.values()] == [PerChannel(axis)]


def test_conv_weights_have_one_scale_an_output_channel(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        "g (float[N,4,8] x) => (float[N,4,4] y) { a = Conv <group = 4> (x, w) y = Conv (a, w2) }",
        w=random_array(4, 1, 3),
        w2=random_array(4, 4, 3),
    )
    assert [weight.granularity for weight in plan_of(model).weights.values()] == [PerChannel(0)]


def test_matmul_weights_have_their_scales_on_the_last_axis(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        "g (float[N,T,6] x) => (float[N,T,3] y) { y = MatMul (x, w) }",
        w=random_array(6, 3),
    )
    assert plan_of(model).weights["w"].granularity == PerChannel(1)


def test_stacked_matmul_weights_have_one_scale(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        "g (float[2,T,6] x) => (float[2,T,3] y) { y = MatMul (x, w) }",
        w=random_array(2, 6, 3),
    )
    assert plan_of(model).weights["w"].granularity == PerTensor()


def test_a_product_of_two_activations_is_quantized_on_both_sides(prepared: Prepared) -> None:
    model = prepared("g (float[N,T,6] x, float[N,6,T] z) => (float[N,T,T] y) { y = MatMul (x, z) }")
    plan = plan_of(model)
    assert set(plan.activations) == {"x", "z"}
    assert not plan.weights


def test_a_product_of_a_tensor_with_itself_is_quantized_once(prepared: Prepared) -> None:
    model = prepared("g (float[N,6,6] x) => (float[N,6,6] y) { y = MatMul (x, x) }")
    assert set(plan_of(model).activations) == {"x"}


def test_a_tied_weight_stays_one_tensor(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        "g (float[N,4,8] x) => (float[N,4,8] y) { a = Conv (x, w) b = Conv (a, w) y = Tanh (b) }",
        w=random_array(4, 4, 1),
    )
    plan = plan_of(model)
    assert list(plan.weights) == ["w"]
    assert plan.weights["w"].nodes == ("/a/Conv", "/b/Conv")


def test_a_weight_tied_across_different_axes_gets_one_scale(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        """g (float[N,6] x) => (float[N,6] y) {
            a = Gemm <transB = 1> (x, w, b)
            c = Sigmoid (a)
            y = MatMul (c, w)
        }""",
        w=random_array(6, 6),
        b=random_array(6),
    )
    plan = plan_of(model)
    assert plan.weights["w"].granularity == PerTensor()
    assert len(plan.weights["w"].nodes) == 2


@pytest.mark.parametrize(
    ("body", "shapes", "words"),
    [
        ("y = Gemm <transA = 1> (x, w)", {"w": (4, 4)}, "transA"),
        ("y = Gemm <alpha = 3e38> (x, w)", {"w": (4, 400)}, "alpha"),
        ("t = Tanh (x) y = Gemm <beta = 2.0> (x, w, t)", {"w": (4, 4)}, "beta"),
        ("y = Gemm (x, w, c)", {"w": (4, 4), "c": (4, 1)}, "row"),
        ("t = Tanh (x) y = Gemm (x, w, t)", {"w": (4, 4)}, "run time"),
        ("t = Tanh (x) y = Gemm (x, t)", {}, "run time"),
        ("v = MatMul (x, w) y = Unsqueeze (v, axes)", {"w": (4,)}, "vector"),
    ],
)
def test_layers_without_an_integer_kernel_say_why(
    prepared: Prepared, random_array: Arrays, body: str, shapes: dict[str, tuple[int, ...]], words: str
) -> None:
    tensors: dict[str, npt.NDArray[Any]] = {name: random_array(*shape) for name, shape in shapes.items()}
    model = prepared(
        f"g (float[4,4] x) => (float[M,N] y, float[4,4] z) {{ {body} z = MatMul (x, other) }}",
        **tensors,
        axes=np.array([1], np.int64),
        other=random_array(4, 4, seed=2),
    )
    plan = plan_of(model)
    layer = next(skip for skip in plan.skipped if skip.operator in ("Gemm", "MatMul"))
    assert words in layer.reason


def test_double_precision_layers_stay_float(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        """g (double[N,4] x, float[N,4] z) => (double[N,4] y, float[N,4] u) {
            y = MatMul (x, w)
            u = MatMul (z, v)
        }""",
        w=random_array(4, 4).astype(np.float64),
        v=random_array(4, 4),
    )
    assert list(plan_of(model).integer_nodes) == ["/u/MatMul"]


# --- element-wise and moving operators


def test_silu_between_layers_runs_on_integers(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y) {
            a = Conv (x, w)
            s = Sigmoid (a)
            m = Mul (a, s)
            b = Conv (m, w)
            y = Tanh (b)
        }""",
        w=random_array(4, 4, 1),
    )
    assert integer_operators(plan_of(model)) == ["Conv", "Sigmoid", "Mul", "Conv"]


def test_an_elementwise_operator_before_float_nodes_stays_float(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y) {
            a = Conv (x, w)
            b = Add (a, a)
            y = Tanh (b)
        }""",
        w=random_array(4, 4, 1),
    )
    plan = plan_of(model)
    assert integer_operators(plan) == ["Conv"]
    assert reason_of(plan, "/b/Add") == "no later node reads integers"


def test_an_elementwise_operator_behind_float_nodes_stays_float(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y) {
            t = Tanh (x)
            u = Sigmoid (t)
            a = Conv (u, w)
            y = Tanh (a)
        }""",
        w=random_array(4, 4, 1),
    )
    plan = plan_of(model)
    assert integer_operators(plan) == ["Conv"]
    assert "comes from float" in reason_of(plan, "/u/Sigmoid")


def test_taking_one_operator_out_takes_out_what_rested_on_it(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y) {
            a = Conv (x, w)
            b = Sigmoid (a)
            c = LeakyRelu (b)
            d = AveragePool <kernel_shape = [1]> (c)
            e = Conv (d, w)
            y = Tanh (e)
        }""",
        w=random_array(4, 4, 1),
    )
    assert integer_operators(plan_of(model)) == ["Conv", "Sigmoid", "LeakyRelu", "AveragePool", "Conv"]
    plan = plan_of(model, exclude=("AveragePool",))
    assert integer_operators(plan) == ["Conv", "Conv"]
    assert "--exclude" in reason_of(plan, "/d/AveragePool")


def test_a_constant_operand_is_quantized_on_the_grid_of_the_activations(
    prepared: Prepared, random_array: Arrays
) -> None:
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y) {
            a = Conv (x, w)
            s = Sigmoid (a)
            m = Mul (s, factor)
            b = Conv (m, w)
            y = Tanh (b)
        }""",
        w=random_array(4, 4, 1),
        factor=random_array(4, 1),
    )
    plan = plan_of(model)
    assert "Mul" in integer_operators(plan)
    assert plan.weights["factor"].grid == _X86.activations
    assert plan.weights["factor"].granularity == PerTensor()


def test_concat_and_split_pass_integers(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y) {
            a = Conv (x, w)
            left, right = Split <axis = 1> (a)
            c = Concat <axis = 1> (right, left)
            b = Conv (c, w)
            y = Tanh (b)
        }""",
        w=random_array(4, 4, 1),
    )
    plan = plan_of(model)
    assert integer_operators(plan) == ["Conv", "Split", "Concat", "Conv"]
    assert plan.activations["left"].source == plan.activations["right"].source == "a"
    assert plan.activations["c"].source == "c"


def test_moving_integers_that_are_no_floats_is_none_of_our_business(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        """g (int64[N,T] ids) => (float[N,T,3] y) {
            row = Unsqueeze (ids, axes)
            flat = Squeeze (row, axes)
            e = Gather (table, flat)
            y = MatMul (e, w)
        }""",
        axes=np.array([0], np.int64),
        table=random_array(7, 4),
        w=random_array(4, 3),
    )
    plan = plan_of(model)
    assert {"row", "flat", "ids"}.isdisjoint(plan.activations)
    assert "Squeeze" not in integer_operators(plan)


@pytest.mark.parametrize(("low", "high", "absorbed"), [(0.0, 6.0, True), (-1.0, 1.0, True), (1.0, 6.0, False)])
def test_a_clip_around_zero_is_absorbed(
    prepared: Prepared, random_array: Arrays, low: float, high: float, absorbed: bool
) -> None:
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y) {
            a = Conv (x, w)
            c = Clip (a, low, high)
            b = Conv (c, w)
            y = Tanh (b)
        }""",
        w=random_array(4, 4, 1),
        low=np.float32(low),
        high=np.float32(high),
    )
    plan = plan_of(model)
    assert ("a" not in plan.activations) == absorbed
    assert ("/c/Clip" not in {skip.node for skip in plan.skipped}) == absorbed


def test_a_relu_with_a_second_reader_before_it_is_not_absorbed(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y, float[N,4,8] z) {
            a = Conv (x, w)
            r = Relu (a)
            b = Conv (r, w)
            y = Tanh (b)
            z = Tanh (a)
        }""",
        w=random_array(4, 4, 1),
    )
    plan = plan_of(model)
    assert {"a", "r"} <= set(plan.activations)


def test_what_is_inside_a_branch_is_skipped_with_its_reason(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        """g (float[N,4,8] x, bool go) => (float[N,4,8] y) {
            a = Conv (x, w)
            b = Tanh (a)
            y = If (go) <
                then_branch = yes () => (float[N,4,8] t) { t = Conv (b, w) },
                else_branch = no () => (float[N,4,8] e) { e = Sigmoid (b) }
            >
        }""",
        w=random_array(4, 4, 1),
    )
    plan = plan_of(model)
    assert integer_operators(plan) == ["Conv"]
    assert {skip.operator for skip in plan.skipped if "branch" in skip.reason} == {"Conv", "Sigmoid"}
    assert plan.weights["w"].nodes == ("/a/Conv",)
