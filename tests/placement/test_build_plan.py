"""The plan says for every tensor what becomes of it, from the graph alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qtool.backends.targets import PRESETS
from qtool.calib.granularity import PerTensor
from qtool.calib.grid import Grid
from qtool.errors import InputError, UsageError
from qtool.planning import build_plan
from qtool.schemes import Scheme
from qtool.selection import NodeSelection
from tests.graphs_read import integer_operators, plan_of, reason_of

_X86 = PRESETS["x86"]
_SYMMETRIC = Scheme(
    activations=Grid(bits=8, signed=True, symmetric=True), weights=Grid(bits=8, signed=True, symmetric=True)
)

Arrays = Callable[..., npt.NDArray[np.float32]]
Prepared = Callable[..., ir.Model]


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
    plan = plan_of(residual)
    assert integer_operators(plan) == ["Conv", "Conv", "Add", "MaxPool", "GlobalAveragePool", "Flatten", "Gemm"]
    assert plan.skipped == ()


def test_activations_are_planned_after_the_relu_that_is_absorbed(residual: ir.Model) -> None:
    assert set(plan_of(residual).activations) == {"x", "b", "c", "e", "f", "g", "h"}


def test_the_output_of_the_model_stays_float(residual: ir.Model) -> None:
    assert "y" not in plan_of(residual).activations


def test_values_that_only_move_share_the_parameters_of_their_source(residual: ir.Model) -> None:
    plan = plan_of(residual)
    assert plan.activations["f"].source == "e"
    assert plan.activations["h"].source == "g"
    assert plan.activations["g"].source == "g"
    # Beside the sources, the data is asked for the channels' means of what layers read.
    assert set(plan.observed) == {"x", "b", "c", "e", "g"} | set(plan.channel_axes)


def test_biases_name_the_input_and_the_weight_that_give_their_scale(residual: ir.Model) -> None:
    biases = plan_of(residual).biases
    assert [(bias.tensor, bias.activation, bias.weight) for bias in biases.values()] == [
        ("b1", "x", "w1"),
        ("b2", "b", "w2"),
        ("b3", "h", "w3"),
    ]


def test_weights_get_the_scheme_s_grid_and_activations_theirs(residual: ir.Model) -> None:
    plan = plan_of(residual)
    assert {weight.grid for weight in plan.weights.values()} == {_X86.weights}
    assert {activation.grid for activation in plan.activations.values()} == {_X86.activations}


def test_per_tensor_weights_on_request(residual: ir.Model) -> None:
    scheme = Scheme(activations=_X86.activations, weights=_X86.weights, per_channel=False)
    assert {weight.granularity for weight in plan_of(residual, scheme).weights.values()} == {PerTensor()}


def test_a_symmetric_grid_absorbs_no_relu(residual: ir.Model) -> None:
    # The grid would reach below zero, and onnxruntime could not drop the Relu.
    plan = plan_of(residual, _SYMMETRIC)
    assert {"/b/Relu", "/e/Relu"} <= {skip.node for skip in plan.skipped}


def test_planning_twice_gives_the_same_plan_and_leaves_the_model_alone(residual: ir.Model) -> None:
    before = ir.to_proto(residual)
    assert plan_of(residual) == plan_of(residual)
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
    plan = plan_of(model)
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


# --- what a person asks for


def test_only_included_nodes_are_quantized(residual: ir.Model) -> None:
    plan = plan_of(residual, include=("Conv",))
    assert integer_operators(plan) == ["Conv", "Conv"]
    assert "--include" in reason_of(plan, "/y/Gemm")


@pytest.mark.parametrize("pattern", ["/c/Conv", "/c/*", "/?/Conv", "re:/[c]/Conv", "re:/(a|c)/C.*"])
def test_patterns_meet_names_by_wildcard_and_regular_expression(residual: ir.Model, pattern: str) -> None:
    plan = plan_of(residual, exclude=(pattern,))
    assert "/c/Conv" not in plan.integer_nodes
    assert "/y/Gemm" in plan.integer_nodes
    assert pattern in reason_of(plan, "/c/Conv")


def test_exclusion_wins_over_inclusion(residual: ir.Model) -> None:
    assert list(plan_of(residual, include=("Conv",), exclude=("/a/*",)).integer_nodes) == ["/c/Conv"]


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_meets_nothing_is_an_error_with_the_nearest_name(residual: ir.Model, option: str) -> None:
    with pytest.raises(UsageError, match="matches no node") as caught:
        plan_of(residual, **{option: ("Conf",)})
    assert f"--{option}" in caught.value.problem
    assert "'Conv'" in caught.value.fix


def test_a_regular_expression_must_meet_the_whole_name(residual: ir.Model) -> None:
    with pytest.raises(UsageError, match="matches no node"):
        plan_of(residual, exclude=("re:Con",))


def test_a_broken_regular_expression_is_an_error(residual: ir.Model) -> None:
    with pytest.raises(UsageError, match="not a regular expression"):
        plan_of(residual, exclude=("re:(",))


def test_tensors_that_data_showed_to_be_unfit_stay_float_with_the_reason(residual: ir.Model) -> None:
    plan = build_plan(residual, _X86, NodeSelection(), unfit={"c": "is infinite at times"})
    assert "/c/Conv" not in plan.integer_nodes
    assert reason_of(plan, "/c/Conv") == "'c' is infinite at times"


# --- models that cannot be quantized


def test_a_quantized_model_is_refused(prepared: Prepared) -> None:
    model = prepared(
        """g (float[N,4] x) => (float[N,4] y) { q = QuantizeLinear (x, scale) y = DequantizeLinear (q, scale) }""",
        scale=np.float32(0.1),
    )
    with pytest.raises(InputError, match="quantized already"):
        plan_of(model)


def test_a_model_without_layers_is_refused(prepared: Prepared) -> None:
    model = prepared("g (float[N,4] x) => (float[N,4] y) { a = Sigmoid (x) y = Tanh (a) }")
    with pytest.raises(InputError, match="nothing in the model can be quantized") as caught:
        plan_of(model)
    assert "Sigmoid" in caught.value.problem
    assert caught.value.fix


def test_a_model_all_of_which_is_excluded_is_refused(residual: ir.Model) -> None:
    with pytest.raises(InputError, match="nothing in the model can be quantized"):
        plan_of(residual, exclude=("*",))
