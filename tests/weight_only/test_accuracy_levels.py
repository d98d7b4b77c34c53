"""Which products get 8-bit activations: the noise that they cost, the time that they save, and repeated runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.backends.onnxruntime_cpu.weight_only_placement import place_weights
from qtool.plan import BlockPlan, WeightOnlyPlan
from qtool.progress import SILENT, Progress
from qtool.qdq.insert_blocks import insert_blocks
from qtool.runtime.graphs import open_graph
from qtool.runtime.parts import Parts
from qtool.search.activation_noise import activation_noise
from qtool.search.blocks.rounding import rounded_to_nearest
from qtool.selection import NodeSelection
from qtool.weights.blocks.choices import BlockMethod, WeightFormat
from qtool.weights.blocks.grid import BlockGrid
from qtool.weights.blocks.quantization import round_blocks
from qtool.workflows.quantize import quantize_weights
from qtool.workflows.quantize.prepare import prepare
from qtool.workflows.quantize.weight_only_request import Attempt
from qtool.workflows.tune.weight_only import search as weight_only_search
from qtool.workflows.tune.weight_only.choice import WeightOnlyChoice
from qtool.workflows.tune.weight_only.level_search import choose_integer_layers, one_position

_GRID = BlockGrid(bits=8, block=32, symmetric=True)
_LAYERS = 40


class _Evaluation:
    """Measures models whose products all have the same times, and a noise of 1, 2, 4, ... each."""

    def __init__(self, *, exact_db: float, first_noise: float, exact_speed: float, integer_speed: float) -> None:
        self.exact_db = exact_db
        self.first_noise = first_noise
        self.speeds = (exact_speed, integer_speed)
        self.evaluated: list[int] = []

    def sqnr_db(self, choice: WeightOnlyChoice, integer_layers: Collection[str] = ()) -> float:
        self.evaluated.append(len(integer_layers))
        added = sum(self.activation_noise(choice)[name] for name in integer_layers)
        return float(-10 * np.log10(10 ** (-self.exact_db / 10) + added))

    def activation_noise(self, choice: WeightOnlyChoice) -> dict[str, float]:
        return {name: self.first_noise * 1.3**number for number, name in enumerate(choice.plan.layers)}

    def times(
        self, choice: WeightOnlyChoice, forms: Sequence[Collection[str]], feed: Any, progress: Progress
    ) -> tuple[np.ndarray, ...]:
        shares = [len(layers) / _LAYERS for layers in forms]
        exact, integer = (1.0 / speed for speed in self.speeds)
        return tuple(np.full(9, seconds) for seconds in (1.0, *(exact + share * (integer - exact) for share in shares)))

    def kernel_times(self, choice: WeightOnlyChoice, integer_layers: Collection[str], feed: Any) -> dict[str, float]:
        seconds = [1.0 / speed / _LAYERS for speed in self.speeds]
        return {name: seconds[name in integer_layers] for name in choice.plan.layers}


def _choice() -> WeightOnlyChoice:
    weight = round_blocks("w", np.ones((8, 32), np.float32), _GRID)
    names = [f"w{number}" for number in range(_LAYERS)]
    plan = WeightOnlyPlan(
        weights={name: BlockPlan(tensor=name, grid=_GRID, nodes=(f"/{name}",)) for name in names},
        layers={f"/{name}": "MatMul" for name in names},
        skipped=(),
    )
    attempt = Attempt(method=BlockMethod.GPTQ, integer_layers=0, sqnr_db=0.0)
    return WeightOnlyChoice(
        plan=plan, weights=dict.fromkeys(names, weight), method=BlockMethod.GPTQ, attempts=(attempt,)
    )


def _chosen(evaluation: _Evaluation, **options: Any) -> WeightOnlyChoice:
    given: Any = evaluation
    return choose_integer_layers(given, _choice(), [{}, {}], SILENT, exact_db=evaluation.exact_db, **options)


def test_as_many_layers_as_cost_little_are_taken_the_quiet_ones_first() -> None:
    evaluation = _Evaluation(exact_db=30.0, first_noise=1e-6, exact_speed=1.1, integer_speed=2.0)
    found = _chosen(evaluation)
    count = len(found.integer_layers)
    assert 0 < count < _LAYERS
    assert found.integer_layers == {f"/w{number}" for number in range(count)}
    assert evaluation.sqnr_db(found, [f"/w{number}" for number in range(count)]) >= 29.5
    assert evaluation.sqnr_db(found, [f"/w{number}" for number in range(count + 1)]) < 29.5
    # Both ends, and a bisection in between.
    assert len(evaluation.evaluated) <= 2 + 2 + int(np.ceil(np.log2(_LAYERS)))
    assert [attempt.integer_layers for attempt in found.attempts] == [0, _LAYERS, count]


def test_all_are_taken_where_they_cost_nothing() -> None:
    found = _chosen(_Evaluation(exact_db=15.0, first_noise=1e-9, exact_speed=1.0, integer_speed=1.5))
    assert len(found.integer_layers) == _LAYERS
    assert [attempt.integer_layers for attempt in found.attempts] == [0, _LAYERS]


def test_none_is_taken_where_integers_are_slower() -> None:
    found = _chosen(_Evaluation(exact_db=15.0, first_noise=1e-9, exact_speed=1.2, integer_speed=0.8))
    assert not found.integer_layers


def test_more_are_taken_where_the_model_would_be_slower_than_float() -> None:
    slow = _Evaluation(exact_db=45.0, first_noise=1e-7, exact_speed=0.4, integer_speed=1.6)
    fast = _Evaluation(exact_db=45.0, first_noise=1e-7, exact_speed=1.2, integer_speed=1.6)
    enough, few = _chosen(slow), _chosen(fast)
    assert len(few.integer_layers) < len(enough.integer_layers) < _LAYERS
    assert slow.times(enough, [enough.integer_layers], {}, SILENT)[1][0] <= 1.0
    assert enough.attempts[-1].sqnr_db >= 25.0


def test_a_goal_is_kept() -> None:
    evaluation = _Evaluation(exact_db=30.0, first_noise=1e-6, exact_speed=1.1, integer_speed=2.0)
    goal = _chosen(evaluation, least_db=29.9)
    assert 0 < len(goal.integer_layers) < len(_chosen(evaluation).integer_layers)


def test_one_position_cuts_what_has_no_fixed_length() -> None:
    proto = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        net (int64[b,t] tokens, float[b,3,p,8] cache, float[b,4] fixed) => (float y)
        { y = Identity (fixed) }
    """)
    model = ir.from_proto(proto)
    sample = {
        "tokens": np.ones((2, 9), np.int64),
        "cache": np.ones((2, 3, 0, 8), np.float32),
        "fixed": np.ones((2, 4), np.float32),
    }
    found = one_position(model, sample)
    assert found is not None
    assert {name: array.shape for name, array in found.items()} == {
        "tokens": (2, 1),
        "cache": (2, 3, 0, 8),
        "fixed": (2, 4),
    }
    assert one_position(model, found) is None


_NETWORK = """
net (float[n,t,64] x, float[n,t,64] wild) => (float[n,t,32] y, float[n,t,32] z)
{
    y = MatMul (x, w1)
    z = MatMul (wild, w2)
}
"""


def _network() -> onnx.ModelProto:
    """Returns a product of even inputs, and one of inputs a few of which are far stronger than the others."""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {_NETWORK}')
    generator = np.random.default_rng(0)
    arrays = {"w1": generator.normal(0, 0.1, (64, 32)), "w2": generator.normal(0, 0.1, (64, 32))}
    arrays["w2"][::32] = 0.001
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}"
    return proto


def _samples(count: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(1).normal(0, 1, (count, 10, 64)).astype(np.float32)
    wild = x.copy()
    wild[:, :, ::32] *= 40.0
    return {"x": x, "wild": wild}


def test_the_noise_is_about_what_the_kernel_makes() -> None:
    model = prepare(ir.from_proto(_network()), integers_between_layers=False)
    plan = place_weights(model.graph, _GRID, NodeSelection().reason_to_skip)
    predicted = activation_noise(model, plan, [_samples(16)])
    weights = rounded_to_nearest(model, plan)
    outputs = []
    for level in (0, 4):
        levels = dict.fromkeys(plan.layers, level)
        graph = insert_blocks(model.clone(), plan, weights, form=WeightFormat.NBITS, levels=levels)
        with open_graph(graph) as session:
            outputs.append(session.run(_samples(16)))
    for name in ("y", "z"):
        exact, integer = (found[name].astype(np.float64) for found in outputs)
        measured = np.square(exact - integer).sum() / np.square(exact).sum()
        assert predicted[f"/{name}"] == pytest.approx(measured, rel=0.3)
    assert predicted["/z"] > 20 * predicted["/y"]


def test_a_part_at_a_time_rounds_activations_as_the_whole_does() -> None:
    model = prepare(ir.from_proto(_network()), integers_between_layers=False)
    plan = place_weights(model.graph, _GRID, NodeSelection().reason_to_skip)
    weights = rounded_to_nearest(model, plan)
    outputs = []
    for level in (0, 4):
        levels = dict.fromkeys(plan.layers, level)
        graph = insert_blocks(model.clone(), plan, weights, form=WeightFormat.NBITS, levels=levels, unpacks=False)
        with open_graph(graph) as session:
            whole = session.run(_samples(16))
        parts = Parts(graph, largest_part_bytes=1).run(_samples(16))
        for name, values in whole.items():
            np.testing.assert_allclose(parts[name], values, atol=1e-5)
        outputs.append(parts["z"])
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "large", "level"),
    [((), False, 0), ((), True, 4), (("--accuracy-level", "0"), True, 0), (("--bits", "4"), True, 0)],
)
def test_without_data_no_product_gets_a_kernel_that_is_slower_than_float(
    run: Any, tmp_path: Path, monkeypatch: Any, options: tuple[str, ...], large: bool, level: int
) -> None:
    onnx.save(_network(), tmp_path / "net.onnx")
    monkeypatch.setattr(quantize_weights, "unpacks", lambda original: not large)
    bits = () if "--bits" in options else ("--bits", "8")
    first = run("quantize", "net.onnx", "--scheme", "weights", *bits, *options, "--json")
    assert first.code == 0, first.err
    assert first.json["accuracy_level"] == level
    wanted = Path(first.json["output"]).read_bytes()
    again = run("quantize", "--locked", first.json["manifest"], "--force", "--json")
    assert again.code == 0, again.err
    assert Path(again.json["output"]).read_bytes() == wanted


def test_a_locked_run_repeats_the_level_of_each_product(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    onnx.save(_network(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", **_samples(24))

    def some(evaluation: Any, choice: WeightOnlyChoice, *_: Any, **__: Any) -> WeightOnlyChoice:
        return replace(choice, integer_layers=frozenset({"/y"}))

    with monkeypatch.context() as patched:
        patched.setattr(weight_only_search, "choose_integer_layers", some)
        first = run("quantize", "net.onnx", "--calib-data", "data.npz", "--scheme", "weights", "--json").json
    assert (first["accuracy_level"], first["integer_layers"]) == (None, ["/y"])
    lock = json.loads(Path(first["manifest"]).read_text(encoding="utf-8"))["lock"]["weights"]
    assert lock == {"method": first["weight_method"], "level": 0, "integer_layers": ["/y"]}
    wanted = Path(first["output"]).read_bytes()
    again = run("quantize", "--locked", first["manifest"], "--force", "--json")
    assert again.code == 0, again.err
    assert Path(first["output"]).read_bytes() == wanted
    levels = {
        node.name: attribute.i
        for node in onnx.load(first["output"]).graph.node
        for attribute in node.attribute
        if attribute.name == "accuracy_level"
    }
    assert levels == {"/y": 4, "/z": 0}
