"""The plan says for every tensor what becomes of it, from the graph alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from calib.granularity import PerChannel, PerTensor
from calib.grid import Grid
from qtool.errors import InputError, UsageError
from qtool.plan import Plan, build_plan
from qtool.schemes import PRESETS, Scheme
from qtool.selection import Selection

_X86 = PRESETS["x86"]
_SYMMETRIC = Scheme(
    activations=Grid(bits=8, signed=True, symmetric=True), weights=Grid(bits=8, signed=True, symmetric=True)
)

Arrays = Callable[..., npt.NDArray[np.float32]]
Prepared = Callable[..., ir.Model]


def _plan(model: ir.Model, scheme: Scheme = _X86, **selection: tuple[str, ...]) -> Plan:
    return build_plan(model, scheme, Selection(**selection))


def _operators(plan: Plan) -> list[str]:
    return list(plan.integer_nodes.values())


def _reason(plan: Plan, node: str) -> str:
    return next(skip.reason for skip in plan.skipped if skip.node == node)


@pytest.fixture
def residual(prepared: Prepared, random_array: Arrays) -> ir.Model:
    return prepared(
        """g (float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1, b1)
            b = Relu (a)
            c = Conv <pads = [1,1,1,1]> (b, w2, b2)
            d = Add (c, b)
            e = Relu (d)
            f = MaxPool <kernel_shape = [2,2], strides = [2,2]> (e)
            g = GlobalAveragePool (f)
            h = Flatten (g)
            y = Gemm <transB = 1> (h, w3, b3)
        }""",
        w1=random_array(4, 3, 3, 3),
        b1=random_array(4),
        w2=random_array(4, 4, 3, 3),
        b2=random_array(4, seed=1),
        w3=random_array(5, 4),
        b3=random_array(5),
    )


def test_a_residual_network_runs_on_integers_from_end_to_end(residual: ir.Model) -> None:
    plan = _plan(residual)
    assert _operators(plan) == ["Conv", "Conv", "Add", "MaxPool", "GlobalAveragePool", "Flatten", "Gemm"]
    assert plan.skipped == ()


def test_activations_are_planned_after_the_relu_that_is_absorbed(residual: ir.Model) -> None:
    assert set(_plan(residual).activations) == {"x", "b", "c", "e", "f", "g", "h"}


def test_the_output_of_the_model_stays_float(residual: ir.Model) -> None:
    assert "y" not in _plan(residual).activations


def test_values_that_only_move_share_the_parameters_of_their_source(residual: ir.Model) -> None:
    plan = _plan(residual)
    assert plan.activations["f"].source == "e"
    assert plan.activations["h"].source == "g"
    assert plan.activations["g"].source == "g"
    # Beside the sources, the data is asked for the channels' means of what layers read.
    assert set(plan.observed) == {"x", "b", "c", "e", "g"} | set(plan.channel_axes)


def test_biases_name_the_input_and_the_weight_that_give_their_scale(residual: ir.Model) -> None:
    biases = _plan(residual).biases
    assert [(bias.tensor, bias.activation, bias.weight) for bias in biases.values()] == [
        ("b1", "x", "w1"),
        ("b2", "b", "w2"),
        ("b3", "h", "w3"),
    ]


def test_weights_get_the_scheme_s_grid_and_activations_theirs(residual: ir.Model) -> None:
    plan = _plan(residual)
    assert {weight.grid for weight in plan.weights.values()} == {_X86.weights}
    assert {activation.grid for activation in plan.activations.values()} == {_X86.activations}


def test_per_tensor_weights_on_request(residual: ir.Model) -> None:
    scheme = Scheme(activations=_X86.activations, weights=_X86.weights, per_channel=False)
    assert {weight.granularity for weight in _plan(residual, scheme).weights.values()} == {PerTensor()}


def test_a_symmetric_grid_absorbs_no_relu(residual: ir.Model) -> None:
    # The grid would reach below zero, and onnxruntime could not drop the Relu.
    plan = _plan(residual, _SYMMETRIC)
    assert {"/b/Relu", "/e/Relu"} <= {skip.node for skip in plan.skipped}


def test_planning_twice_gives_the_same_plan_and_leaves_the_model_alone(residual: ir.Model) -> None:
    before = ir.to_proto(residual)
    assert _plan(residual) == _plan(residual)
    assert ir.to_proto(residual) == before


def test_every_node_is_on_integers_or_absorbed_or_skipped_with_a_reason(
    prepared: Prepared, random_array: Arrays
) -> None:
    model = prepared(
        """g (float[N,3,8,8] x) => (float[N,4] y, float[N,4,6,6] tail) {
            a = Conv (x, w1)
            b = Relu (a)
            c = Tanh (b)
            d = Conv <pads = [1,1,1,1]> (c, w2)
            e = Clip (d, low, high)
            tail = Conv <pads = [1,1,1,1]> (e, w2)
            f = GlobalAveragePool (e)
            g = Flatten (f)
            y = Softmax (g)
        }""",
        w1=random_array(4, 3, 3, 3),
        w2=random_array(4, 4, 3, 3),
        low=np.float32(0.5),
        high=np.float32(6.0),
    )
    plan = _plan(model)
    skipped = {skip.node: skip for skip in plan.skipped}
    for node in model.graph:
        absorbed = node.op_type == "Relu"
        assert (node.name in plan.integer_nodes) + (node.name in skipped) + absorbed == 1, node.name
    for skip in plan.skipped:
        assert skip.operator in skip.node
        assert skip.reason == skip.reason.strip()
        assert len(skip.reason) > 10
        assert "\n" not in skip.reason
    assert "output of the model" in skipped["/tail/Conv"].reason
    assert "Tanh" in skipped["/c/Tanh"].reason


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
    assert [weight.granularity for weight in _plan(model).weights.values()] == [PerChannel(axis)]


def test_conv_weights_have_one_scale_an_output_channel(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        "g (float[N,4,8] x) => (float[N,4,4] y) { a = Conv <group = 4> (x, w) y = Conv (a, w2) }",
        w=random_array(4, 1, 3),
        w2=random_array(4, 4, 3),
    )
    assert [weight.granularity for weight in _plan(model).weights.values()] == [PerChannel(0)]


def test_matmul_weights_have_their_scales_on_the_last_axis(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        "g (float[N,T,6] x) => (float[N,T,3] y) { y = MatMul (x, w) }",
        w=random_array(6, 3),
    )
    assert _plan(model).weights["w"].granularity == PerChannel(1)


def test_stacked_matmul_weights_have_one_scale(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        "g (float[2,T,6] x) => (float[2,T,3] y) { y = MatMul (x, w) }",
        w=random_array(2, 6, 3),
    )
    assert _plan(model).weights["w"].granularity == PerTensor()


def test_a_product_of_two_activations_is_quantized_on_both_sides(prepared: Prepared) -> None:
    model = prepared("g (float[N,T,6] x, float[N,6,T] z) => (float[N,T,T] y) { y = MatMul (x, z) }")
    plan = _plan(model)
    assert set(plan.activations) == {"x", "z"}
    assert not plan.weights


def test_a_product_of_a_tensor_with_itself_is_quantized_once(prepared: Prepared) -> None:
    model = prepared("g (float[N,6,6] x) => (float[N,6,6] y) { y = MatMul (x, x) }")
    assert set(_plan(model).activations) == {"x"}


def test_a_tied_weight_stays_one_tensor(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        "g (float[N,4,8] x) => (float[N,4,8] y) { a = Conv (x, w) b = Conv (a, w) y = Tanh (b) }",
        w=random_array(4, 4, 1),
    )
    plan = _plan(model)
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
    plan = _plan(model)
    assert plan.weights["w"].granularity == PerTensor()
    assert len(plan.weights["w"].nodes) == 2


@pytest.mark.parametrize(
    ("body", "shapes", "words"),
    [
        ("y = Gemm <transA = 1> (x, w)", {"w": (4, 4)}, "transA"),
        ("y = Gemm <alpha = 0.5> (x, w)", {"w": (4, 4)}, "alpha"),
        ("y = Gemm <beta = 2.0> (x, w, c)", {"w": (4, 4), "c": (4,)}, "beta"),
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
    plan = _plan(model)
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
    assert list(_plan(model).integer_nodes) == ["/u/MatMul"]


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
    assert _operators(_plan(model)) == ["Conv", "Sigmoid", "Mul", "Conv"]


def test_an_elementwise_operator_before_float_nodes_stays_float(prepared: Prepared, random_array: Arrays) -> None:
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y) {
            a = Conv (x, w)
            b = Add (a, a)
            y = Tanh (b)
        }""",
        w=random_array(4, 4, 1),
    )
    plan = _plan(model)
    assert _operators(plan) == ["Conv"]
    assert _reason(plan, "/b/Add") == "nothing behind it reads integers"


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
    plan = _plan(model)
    assert _operators(plan) == ["Conv"]
    assert "comes from float" in _reason(plan, "/u/Sigmoid")


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
    assert _operators(_plan(model)) == ["Conv", "Sigmoid", "LeakyRelu", "AveragePool", "Conv"]
    plan = _plan(model, exclude=("AveragePool",))
    assert _operators(plan) == ["Conv", "Conv"]
    assert "--exclude" in _reason(plan, "/d/AveragePool")


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
    plan = _plan(model)
    assert "Mul" in _operators(plan)
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
    plan = _plan(model)
    assert _operators(plan) == ["Conv", "Split", "Concat", "Conv"]
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
    plan = _plan(model)
    assert {"row", "flat", "ids"}.isdisjoint(plan.activations)
    assert "Squeeze" not in _operators(plan)


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
    plan = _plan(model)
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
    plan = _plan(model)
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
    plan = _plan(model)
    assert _operators(plan) == ["Conv"]
    assert {skip.operator for skip in plan.skipped if "branch" in skip.reason} == {"Conv", "Sigmoid"}
    assert plan.weights["w"].nodes == ("/a/Conv",)


# --- what a person asks for


def test_only_included_nodes_are_quantized(residual: ir.Model) -> None:
    plan = _plan(residual, include=("Conv",))
    assert _operators(plan) == ["Conv", "Conv"]
    assert "--include" in _reason(plan, "/y/Gemm")


@pytest.mark.parametrize("pattern", ["/c/Conv", "/c/*", "/?/Conv", "re:/[c]/Conv", "re:/(a|c)/C.*"])
def test_patterns_meet_names_by_wildcard_and_regular_expression(residual: ir.Model, pattern: str) -> None:
    plan = _plan(residual, exclude=(pattern,))
    assert "/c/Conv" not in plan.integer_nodes
    assert "/y/Gemm" in plan.integer_nodes
    assert pattern in _reason(plan, "/c/Conv")


def test_exclusion_wins_over_inclusion(residual: ir.Model) -> None:
    assert list(_plan(residual, include=("Conv",), exclude=("/a/*",)).integer_nodes) == ["/c/Conv"]


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_meets_nothing_is_an_error_with_the_nearest_name(residual: ir.Model, option: str) -> None:
    with pytest.raises(UsageError, match="matches no node") as caught:
        _plan(residual, **{option: ("Conf",)})
    assert f"--{option}" in caught.value.problem
    assert "'Conv'" in caught.value.fix


def test_a_regular_expression_must_meet_the_whole_name(residual: ir.Model) -> None:
    with pytest.raises(UsageError, match="matches no node"):
        _plan(residual, exclude=("re:Con",))


def test_a_broken_regular_expression_is_an_error(residual: ir.Model) -> None:
    with pytest.raises(UsageError, match="not a regular expression"):
        _plan(residual, exclude=("re:(",))


def test_tensors_that_data_showed_to_be_unfit_stay_float_with_the_reason(residual: ir.Model) -> None:
    plan = build_plan(residual, _X86, Selection(), unfit={"c": "is infinite at times"})
    assert "/c/Conv" not in plan.integer_nodes
    assert _reason(plan, "/c/Conv") == "'c' is infinite at times"


# --- models that cannot be quantized


def test_a_quantized_model_is_refused(prepared: Prepared) -> None:
    model = prepared(
        """g (float[N,4] x) => (float[N,4] y) { q = QuantizeLinear (x, scale) y = DequantizeLinear (q, scale) }""",
        scale=np.float32(0.1),
    )
    with pytest.raises(InputError, match="quantized already"):
        _plan(model)


def test_a_model_without_layers_is_refused(prepared: Prepared) -> None:
    model = prepared("g (float[N,4] x) => (float[N,4] y) { a = Sigmoid (x) y = Tanh (a) }")
    with pytest.raises(InputError, match="nothing in the model can be quantized") as caught:
        _plan(model)
    assert "Sigmoid" in caught.value.problem
    assert caught.value.fix


def test_a_model_all_of_which_is_excluded_is_refused(residual: ir.Model) -> None:
    with pytest.raises(InputError, match="nothing in the model can be quantized"):
        _plan(residual, exclude=("*",))
