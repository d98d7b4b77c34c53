"""What keeping layers float costs, beside sums made by hand and all choices there are."""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain, combinations

import networkx as nx
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from qtool.backends.machine_profile import LayerKind, LayerSpeed, MachineProfile, OperatorSpeed
from qtool.backends.targets import PRESETS
from qtool.planning import build_plan
from qtool.runtime.profile import KernelTime
from qtool.search.float_cost import Border, FloatCost, float_cost
from qtool.search.layer_times import LayerTime, layer_kind, measured_times, multiply_adds, predicted_times
from qtool.search.node_groups import node_groups
from qtool.selection import NodeSelection
from qtool.workflows.quantize.prepare import prepare

_GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3,8,8] x) => (float[n,5] y)
{
    a = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r = Relu (a)
    c = Conv <group = 4, pads = [1,1,1,1]> (r, w2, b2)
    p = GlobalAveragePool (c)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, w3, b3)
}
"""
_SHAPES = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 1, 3, 3), "b2": (4,), "w3": (5, 4), "b3": (5,)}
# Of one sample.
_FIRST, _SECOND, _LAST = 27 * 4 * 64, 9 * 4 * 64, 20
_POOLED = 4 * 64
_PROFILE = MachineProfile(
    origin="made up",
    threads=1,
    layers={kind: LayerSpeed(floats=3.0, signed=1.0, unsigned=2.0) for kind in LayerKind},
    operators={"GlobalAveragePool": OperatorSpeed(floats=0.5, integers=0.25)},
    quantize=2.0,
    dequantize=1.0,
    transpose=0.5,
    reorder=0.25,
    node=10.0,
)


@pytest.fixture(scope="module")
def model() -> ir.Model:
    """A prepared network of three layers."""
    generator = np.random.default_rng(0)
    proto = parser.parse_model(_GRAPH)
    for name, shape in _SHAPES.items():
        values = generator.normal(0, 0.3, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    for node in proto.graph.node:
        node.name = node.output[0]
    return prepare(ir.from_proto(proto))


@pytest.fixture(scope="module")
def cost(model: ir.Model) -> FloatCost:
    """The costs of its layers on a machine that is easy to reckon with."""
    groups = node_groups(model, build_plan(model, PRESETS["x86"], NodeSelection()))
    assert [group.layer for group in groups] == ["a", "c", "y"]
    feed = {"x": np.random.default_rng(0).normal(0, 1, (1, 3, 8, 8)).astype(np.float32)}
    return float_cost(model, groups, feed, _PROFILE)


def test_nothing_in_float_costs_nothing(cost: FloatCost) -> None:
    assert cost.nanoseconds([]) == 0.0
    assert cost.share([]) == 0.0


def test_the_first_layer_in_float_moves_the_place_where_its_input_is_converted(cost: FloatCost) -> None:
    # The input need not become integers any more; the map behind the first layer has to, from blocks of channels, and
    # the input has to be laid out in such blocks.
    before = 10.0 + 3 * 64 * (2.0 + 0.5)
    after = 10.0 + 4 * 64 * (2.0 + 0.5 + 0.25) + 10.0 + 3 * 64 * 0.25
    assert cost.nanoseconds(["a"]) == pytest.approx(2.0 * _FIRST + after - before)


def test_a_layer_in_the_middle_has_to_be_entered_and_left(cost: FloatCost) -> None:
    # The pool and what flattens it belong to it: one number a channel leaves its block first, and then becomes integer.
    entered = 10.0 + 4 * 64 * (1.0 + 0.5 + 0.25)
    left = 10.0 + 4 * 0.25 + 10.0 + 4 * 2.0
    saved = 2.0 * _SECOND + 0.25 * _POOLED
    assert cost.nanoseconds(["c"]) == pytest.approx(saved + entered + left)


def test_neighbours_cost_less_together_than_each_alone(cost: FloatCost) -> None:
    assert cost.nanoseconds(["a", "c"]) < cost.nanoseconds(["a"]) + cost.nanoseconds(["c"])


def test_everything_in_float_gives_up_everything(cost: FloatCost) -> None:
    assert cost.share(["a", "c", "y"]) == pytest.approx(1.0)
    # Beside a model whose last layer is float, it gives up what the others save.
    beside = cost.beside(["y"])
    assert beside.nanoseconds(["a", "c"]) == pytest.approx(cost.nanoseconds(["a", "c", "y"]) - cost.nanoseconds(["y"]))
    assert beside.share(["a", "c"]) == pytest.approx(1.0)


def test_no_cut_is_needed_where_no_layer_saves_time(monkeypatch: pytest.MonkeyPatch) -> None:
    border = Border(producer="a", readers=frozenset({"b"}), to_integers=5.0, to_floats=5.0)
    times = {"a": LayerTime(floats=1.0, integers=2.0), "b": LayerTime(floats=2.0, integers=2.0)}
    faster = {**times, "b": LayerTime(floats=9.0, integers=2.0)}
    assert FloatCost(faster, [border]).cheapest() == frozenset()
    monkeypatch.setattr(nx, "minimum_cut", lambda *_: pytest.fail("it takes long"))
    assert FloatCost(times, [border]).cheapest() == {"a", "b"}


def test_a_run_that_may_take_longer_gives_up_as_much_of_what_is_saved(cost: FloatCost) -> None:
    integers = _FIRST + _SECOND + 10.0 + _LAST + 0.25 * _POOLED
    borders = 10.0 + 3 * 64 * 2.5 + 10.0 + 5 * 1.0
    part = 0.1 * (integers + borders) / cost.nanoseconds(["a", "c", "y"])
    assert cost.share_of_slowdown(0.1) == pytest.approx(part)


@pytest.mark.parametrize(
    ("text", "weight", "kind", "products"),
    [
        ("Conv (x, w)", (8, 16, 3, 3), LayerKind.CONV, 8 * 16 * 9 * 36),
        ("Conv (x, w)", (8, 16, 1, 1), LayerKind.POINTWISE, 8 * 16 * 64),
        ("Conv <group = 16> (x, w)", (16, 1, 3, 3), LayerKind.DEPTHWISE, 16 * 9 * 36),
        ("Conv <group = 16> (x, w)", (16, 1, 5, 5), LayerKind.LARGE_DEPTHWISE, 16 * 25 * 16),
        ("Conv <group = 4> (x, w)", (8, 4, 3, 3), LayerKind.NARROW, 8 * 4 * 9 * 36),
        ("MatMul (x, w)", (8, 5), LayerKind.MATRIX, 16 * 8 * 8 * 5),
        ("MatMul (x, x)", None, LayerKind.ACTIVATIONS, 16 * 8 * 8 * 8),
    ],
)
def test_kernels_are_told_apart(text: str, weight: tuple[int, ...] | None, kind: LayerKind, products: int) -> None:
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[1,16,8,8] x) => (float[a,b,c,d] y) {{ y = {text} }}'
    )
    if weight is not None:
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(weight, np.float32), "w"))
    node = ir.from_proto(proto).graph[0]
    side = 8 if weight is None or len(weight) < 4 else 8 - weight[2] + 1
    made = (1, 16, 8, 8 if weight is None else weight[1]) if "MatMul" in text else (1, weight[0], side, side)  # type: ignore[index]
    shapes = {"x": (1, 16, 8, 8), "y": made}
    assert layer_kind(node, shapes) is kind
    assert multiply_adds(node, shapes) == products


def test_one_row_is_a_kernel_of_its_own() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,8] x) => (float[1,5] y) { y = MatMul (x, w) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((8, 5), np.float32), "w"))
    assert layer_kind(ir.from_proto(proto).graph[0], {"x": (1, 8), "y": (1, 5)}) is LayerKind.VECTOR


def test_products_too_small_for_integers_are_predicted_slower() -> None:
    def times(rows: int) -> LayerTime:
        proto = parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : 17]> g (float[{rows},4] x) => (float[{rows},4] y) '
            "{ y = MatMul (x, w) }"
        )
        proto.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.float32), "w"))
        proto.graph.node[0].name = "y"
        model = ir.from_proto(proto)
        groups = node_groups(model, build_plan(model, PRESETS["x86"], NodeSelection()))
        return predicted_times(model, groups, {"x": (rows, 4), "y": (rows, 4)}, _PROFILE)["y"]

    # An integer product begins with a node's constant time, and takes a third of the time from there on.
    assert (times(1).floats, times(1).integers) == (48.0, 16.0 + 10.0)
    assert times(16).floats / times(16).integers == pytest.approx(768 / 266)


_NAMES = "abcde"
_NANOSECONDS = st.integers(0, 40).map(float)
_PLACES = st.one_of(st.none(), st.sampled_from(_NAMES))
_BORDERS = st.builds(
    Border,
    producer=_PLACES,
    readers=st.frozensets(_PLACES, min_size=1, max_size=3),
    to_integers=_NANOSECONDS,
    to_floats=_NANOSECONDS,
    among_floats=_NANOSECONDS,
)


@settings(max_examples=200)
@given(
    times=st.fixed_dictionaries(
        {name: st.builds(LayerTime, floats=_NANOSECONDS, integers=_NANOSECONDS) for name in _NAMES}
    ),
    borders=st.lists(_BORDERS, max_size=8),
    base=st.frozensets(st.sampled_from(_NAMES), max_size=2),
)
def test_no_other_choice_is_shorter(times: dict[str, LayerTime], borders: list[Border], base: frozenset[str]) -> None:
    cost = FloatCost(times, borders, base=base)
    choices = chain.from_iterable(combinations(_NAMES, length) for length in range(len(_NAMES) + 1))
    shortest = min(cost.nanoseconds(choice) for choice in choices)
    found = cost.cheapest()
    assert base <= found
    assert cost.nanoseconds(found) == pytest.approx(shortest)


def test_trust_changes_savings_and_losses() -> None:
    times = {"a": LayerTime(floats=30.0, integers=10.0), "b": LayerTime(floats=10.0, integers=30.0)}
    cost = FloatCost(times, [])
    trusted = cost.trusted(2.0)
    assert (cost.nanoseconds("a"), cost.nanoseconds("b")) == (20.0, -20.0)
    assert (trusted.nanoseconds("a"), trusted.nanoseconds("b")) == (40.0, -10.0)
    assert asdict(times["a"]) == {"floats": 30.0, "integers": 10.0}


def test_kernels_that_were_timed_in_a_quiet_moment_are_no_faster_than_whole_runs_say(
    model: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = node_groups(model, build_plan(model, PRESETS["x86"], NodeSelection()))
    profiles = tuple(
        {group.layer: KernelTime(seconds=seconds, kernels=1) for group in groups} for seconds in (1e-9, 1e-3)
    )
    monkeypatch.setattr("qtool.search.layer_times.kernel_times", lambda *_, **__: profiles)
    feed = {"x": np.random.default_rng(0).normal(0, 1, (1, 3, 8, 8)).astype(np.float32)}
    measured = measured_times(model, model, groups, feed, threads=1)
    times = measured.times.values()
    assert sum(time.floats for time in times) == pytest.approx(1e9 * measured.float_s)
    assert sum(time.floats for time in times) == pytest.approx(sum(time.integers for time in times), rel=0.9)
