"""Ranges judged by what they do to the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.backends.targets import PRESETS
from qtool.calib.affine import AffineParams, Range, dequantize, params_from_range, quantize
from qtool.calib.ranges.min_max import MinMax
from qtool.calib.statistics import TensorStatistics
from qtool.metrics.noise import NoiseMeter
from qtool.plan import Plan
from qtool.planning import build_plan
from qtool.progress import Silent
from qtool.runtime.graphs import open_graph
from qtool.search.fake_quant.fake_quant_graph import open_fake_quant_graph
from qtool.search.range_choice import choose_ranges
from qtool.selection import NodeSelection
from qtool.workflows.quantize.prepare import prepare
from qtool.workflows.tune import correction_search
from tests.conftest import Outcome


def _model() -> tuple[ir.Model, Plan]:
    generator = np.random.default_rng(0)
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n,16] x) => (float[n,4] y)'
        "{ a = MatMul (x, w)\n t = Tanh (a)\n y = MatMul (t, v) }"
    )
    tensors = {"w": generator.normal(0, 0.5, (16, 8)), "v": generator.normal(0, 1, (8, 4))}
    # The last input means nothing to the model, whatever it holds.
    tensors["w"][15] = 0.0
    proto.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()
    )
    model = prepare(ir.from_proto(proto))
    return model, build_plan(model, PRESETS["x86"], NodeSelection())


def _feeds() -> list[dict[str, np.ndarray]]:
    x = np.random.default_rng(2).normal(0, 1, (64, 16)).astype(np.float32)
    x[5, 15] = 300.0
    return [{"x": x[:32]}, {"x": x[32:]}]


def _statistics(model: ir.Model, plan: Plan) -> dict[str, TensorStatistics]:
    found = {name: TensorStatistics() for name in plan.observed}
    for feed in _feeds():
        found["x"].add(feed["x"], feed["x"])
    values = np.random.default_rng(3).uniform(-1, 1, (64, 8)).astype(np.float32)
    found["t"].add(values, values)
    return found


def _minmax(model: ir.Model, plan: Plan) -> AffineParams:
    grid = plan.activations["x"].grid
    return params_from_range(MinMax().span(_statistics(model, plan)["x"], grid), grid)


def test_a_switch_does_what_quantizing_that_tensor_does() -> None:
    model, plan = _model()
    params = params_from_range(
        MinMax().span(_statistics(model, plan)["x"], plan.activations["x"].grid), plan.activations["x"].grid
    )
    meter = NoiseMeter()
    with open_graph(model) as session:
        for feed in _feeds():
            rounded = dequantize(quantize(feed["x"], params), params)
            meter.add(session.run(feed), session.run({"x": rounded}))
    with open_fake_quant_graph(model, tuple(plan.activations.values()), _feeds()) as runner:
        assert runner.sources == ("x", "t")
        assert runner.noise({}) == 0.0
        assert runner.noise({"x": params}) == pytest.approx(meter.worst(), rel=1e-3)


def test_an_outlier_that_means_nothing_is_clipped() -> None:
    model, plan = _model()
    before = ir.to_proto(model).SerializeToString()
    choice = choose_ranges(model, plan, _statistics(model, plan), _feeds(), Silent())
    assert choice.methods["x"] != "minmax"
    assert choice.params["x"].range.high < 100
    minmax = params_from_range(
        MinMax().span(_statistics(model, plan)["x"], plan.activations["x"].grid), plan.activations["x"].grid
    )
    with open_fake_quant_graph(model, tuple(plan.activations.values()), _feeds()) as runner:
        assert choice.noise < 0.1 * runner.noise({"x": minmax})
    assert ir.to_proto(model).SerializeToString() == before


def test_without_time_for_single_tensors_the_methods_are_compared() -> None:
    model, plan = _model()
    choice = choose_ranges(model, plan, _statistics(model, plan), _feeds(), Silent(), stop=lambda: True)
    assert choice.methods["x"] != "minmax"
    assert choice.params["x"].range.high < 100


def test_methods_that_are_close_are_compared_on_other_samples() -> None:
    model, plan = _model()
    statistics = _statistics(model, plan)
    everything = np.random.default_rng(7).normal(0, 1, (512, 16)).astype(np.float32)
    statistics["x"] = TensorStatistics()
    statistics["x"].add(everything, everything)
    # None of these values is clipped, so the narrowest range is the best; among all there are larger ones.
    few, others = [{"x": np.clip(everything[:32], -2.5, 2.5)}], [{"x": everything[:256]}, {"x": everything[256:]}]
    alone = choose_ranges(model, plan, statistics, few, Silent(), each=False)
    compared = choose_ranges(model, plan, statistics, few, Silent(), others=others, each=False)
    late = choose_ranges(model, plan, statistics, few, Silent(), others=others, each=False, stop=lambda: True)
    assert late.methods == alone.methods
    assert compared.params["x"].range.high > alone.params["x"].range.high
    with open_fake_quant_graph(model, tuple(plan.activations.values()), others) as runner:
        assert compared.noise == pytest.approx(runner.noise(compared.params), rel=1e-6)
        assert compared.noise < 0.5 * runner.noise(alone.params)


def test_single_samples_rule_nothing_out() -> None:
    model, plan = _model()
    values = np.random.default_rng(7).normal(0, 1, (4, 16)).astype(np.float32)
    grid = plan.activations["x"].grid
    narrow, wide = (params_from_range(Range(-reach, reach), grid) for reach in (0.1, 4.0))
    # Only the first of them is so small that a wide range is coarse.
    feeds = [{"x": (0.02 if number == 0 else 1.0) * values[number : number + 1]} for number in range(4)]
    with (
        open_fake_quant_graph(model, tuple(plan.activations.values()), feeds) as runner,
        runner.one_by_one() as measured,
    ):
        noise = measured("x", runner.stretches(runner.sources)["x"])
        first = noise.on_first_batch(narrow)
        assert first.worst() < 0.1 * noise.on_first_batch(wide).worst()
        clipped, whole = noise.race([narrow, wide], first)
        assert whole < math.inf
        assert clipped == math.inf


def test_an_output_that_is_no_number_is_infinitely_noisy() -> None:
    meter = NoiseMeter()
    meter.add({"y": np.ones(3, np.float32)}, {"y": np.array([1, np.nan, 1], np.float32)})
    assert meter.worst() == np.inf


def test_a_tensor_makes_the_same_noise_from_the_middle_of_the_graph_on() -> None:
    layers = 16
    generator = np.random.default_rng(5)
    lines = ["h0 = MatMul (x, w0)"]
    lines += [
        f"t{number} = Tanh (h{number - 1})\n h{number} = MatMul (t{number}, w{number})" for number in range(1, layers)
    ]
    text = "\n".join([*lines, "kept = Add (t2, h1)", f"y = Softmax (h{layers - 1})"])
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[n,16] x) => (float[n,16] y, float[n,16] kept) {{ {text} }}'
    )
    proto.graph.initializer.extend(
        numpy_helper.from_array(generator.normal(0, 0.3, (16, 16)).astype(np.float32), f"w{number}")
        for number in range(layers)
    )
    model = prepare(ir.from_proto(proto))
    plan = build_plan(model, PRESETS["x86"], NodeSelection())
    params = params_from_range(Range(-2.5, 2.5), plan.activations["x"].grid)
    with open_fake_quant_graph(model, tuple(plan.activations.values()), _feeds()) as runner:
        found = {}
        with runner.one_by_one() as measured:
            for source, stretch in runner.stretches(runner.sources).items():
                noise = measured(source, stretch)
                begun = noise.on_first_batch(params)
                (found[source],) = noise.race([params], NoiseMeter.of(begun.sums))
                # One that clips much makes more noise on the first batch already.
                clipped = params_from_range(Range(-0.02, 0.02), plan.activations["x"].grid)
                ahead, behind = noise.race([params, clipped], NoiseMeter.of(begun.sums))
                assert 0 < ahead < np.inf
                assert behind == np.inf
                assert noise.race([clipped, params], noise.on_first_batch(clipped))[0] == np.inf
        assert tuple(found) == runner.sources
        assert len(found) >= layers
        for source, alone in found.items():
            assert alone == pytest.approx(runner.noise({source: params}), rel=1e-3)
            assert alone > 0


@pytest.mark.parametrize(("layers", "effort", "batches"), [(1, "balanced", 16), (40, "balanced", 2), (40, "fast", 2)])
def test_few_tensors_are_judged_on_more_samples(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, layers: int, effort: str, batches: int
) -> None:
    body = "".join(f"a{n} = MatMul (t{n}, w)\n t{n + 1} = Tanh (a{n})\n" for n in range(layers))
    body = f"t0 = Neg (x)\n {body} y = Neg (t{layers})"
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[n,64,64] x) => (float[n,64,64] y) {{ {body} }}'
    )
    draw = np.random.default_rng(0)
    weight = draw.normal(0, 0.2, (64, 64)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(proto, "net.onnx")
    np.savez("data.npz", x=draw.normal(0, 1, (120, 64, 64)).astype(np.float32))
    seen, choose = list[tuple[int, int]](), correction_search.choose_ranges

    def counted(model: ir.Model, plan: Plan, statistics: Any, feeds: Any, *rest: Any, others: Any, **named: Any) -> Any:
        batches = list(others)
        seen.append((len(feeds), sum(len(batch["x"]) for batch in batches)))
        return choose(model, plan, statistics, feeds, *rest, others=batches, **named)

    monkeypatch.setattr(correction_search, "choose_ranges", counted)
    made = run("quantize", "net.onnx", "--calib-data", "data.npz", "--effort", effort)
    assert made.code == 0, made.err
    assert seen[0] == (batches, 64)
