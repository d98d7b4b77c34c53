"""Layers stay float where integers save no time: by a profile, by the clock, and again by a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qtool.backends.execution import AS_IT_IS
from qtool.backends.machine_profile import LayerKind, MachineProfile
from qtool.backends.onnxruntime_cpu.measure_profile import measure_profile
from qtool.backends.onnxruntime_cpu.shipped_profiles import shipped_profile
from qtool.metrics.latency import Interval
from qtool.progress import SILENT
from qtool.runtime.session import Session
from qtool.search.layer_times import LayerTime, MeasuredLayers
from qtool.workflows.tune import quantization_search, speed, time_plan
from qtool.workflows.tune import times_in_turns as turns
from qtool.workflows.tune.timing import Stage

_NET = """g (float[n,3,16,16] x) => (float[n,10] y) {
    a = Conv <pads = [1,1,1,1]> (x, w1)
    r = Relu (a)
    b = Conv <pads = [1,1,1,1]> (r, w2)
    p = GlobalAveragePool (b)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, w3, b3)
}"""
_SHAPES = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (10, 16), "b3": (10,)}


@pytest.fixture
def model(save: Any, tmp_path: Path) -> Path:
    """A small network, and calib.npz beside it."""
    generator = np.random.default_rng(0)
    weights = {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in _SHAPES.items()}
    np.savez(tmp_path / "calib.npz", x=generator.normal(0, 1, (48, 3, 16, 16)).astype(np.float32))
    path: Path = save("net.onnx", _NET, **weights)
    return path


@pytest.fixture
def profile(tmp_path: Path) -> Callable[[float], Path]:
    """Writes the profile of a machine on which integers take so many times as long as floats."""

    def write(factor: float) -> Path:
        base = shipped_profile("x86-vnni")
        changed: MachineProfile = replace(
            base,
            layers={kind: replace(speed, signed=speed.floats * factor) for kind, speed in base.layers.items()},
            operators={name: replace(speed, integers=speed.floats) for name, speed in base.operators.items()},
            **dict.fromkeys(("quantize", "dequantize", "transpose", "reorder", "node"), 0.001),
        )
        path = tmp_path / f"profile{factor}.json"
        path.write_text(json.dumps(changed.as_json()))
        return path

    return write


def _quantized(path: Path) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


def _timing(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "net.int8.manifest.json").read_text("utf-8"))["lock"]["timing"]


def test_a_machine_with_slow_integers_gets_the_float_model(
    run: Any, model: Path, profile: Callable[[float], Path], tmp_path: Path
) -> None:
    outcome = run("quantize", model, "--calib-data", "calib.npz", "--machine-profile", profile(10.0), "--json")
    assert outcome.code == 0, outcome.err
    assert set(outcome.json["kept_float_for_speed"]) == {"n_a", "n_b", "n_p", "n_f", "n_y"}
    reasons = {entry["node"]: entry["reason"] for entry in outcome.json["float_nodes"]}
    assert {reasons[node] for node in ("n_a", "n_b", "n_y")} == {"integers save no time here"}
    output = tmp_path / "net.int8.onnx"
    assert not _quantized(output)
    x = np.load(tmp_path / "calib.npz")["x"][:4]
    assert np.array_equal(Session(output).run({"x": x})["y"], Session(model).run({"x": x})["y"])


def test_people_are_told_what_stays_float_and_how_to_change_it(
    run: Any, model: Path, profile: Callable[[float], Path]
) -> None:
    outcome = run("quantize", model, "--calib-data", "calib.npz", "--machine-profile", profile(10.0))
    assert outcome.code == 0, outcome.err
    assert "kept in float, where INT8 is no faster: 5 nodes (--smallest quantizes them)" in outcome.out


def test_few_words_give_the_true_cause_as_well(run: Any, model: Path, profile: Callable[[float], Path]) -> None:
    outcome = run(
        "quantize", model, "--calib-data", "calib.npz", "--target", "x86-vnni", "--machine-profile", profile(10.0), "-q"
    )
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.err.split())
    assert "integers save no time in this model on x86 with VNNI, so all of it stays float" in said
    assert "--smallest" in said
    assert "can be quantized" not in said


@pytest.mark.parametrize("options", [(), ("--smallest",)])
def test_fast_integers_and_small_files_get_integers(
    run: Any, model: Path, profile: Callable[[float], Path], tmp_path: Path, options: tuple[str, ...]
) -> None:
    factor = 10.0 if options else 0.1
    outcome = run(
        "quantize", model, "--calib-data", "calib.npz", "--machine-profile", profile(factor), *options, "--json"
    )
    assert outcome.code == 0, outcome.err
    assert outcome.json["kept_float_for_speed"] == []
    assert outcome.json["coverage"]["share"] == 1.0
    assert _quantized(tmp_path / "net.int8.onnx")


def test_the_clock_decides_without_a_profile_and_its_choice_is_recorded(run: Any, model: Path, tmp_path: Path) -> None:
    outcome = run("quantize", model, "--calib-data", "calib.npz", "--machine-profile", "measured", "--json")
    assert outcome.code == 0, outcome.err
    timing = _timing(tmp_path)
    assert timing["profile"]["origin"] == "measured"
    assert set(timing["layers"]) == {"n_a", "n_b", "n_y"}
    assert all(min(time.values()) >= 0.0 for time in timing["layers"].values())
    assert (timing["stage"] == Stage.NOTHING) <= (outcome.json["kept_float_for_speed"] == [])
    in_float = {entry["node"] for entry in outcome.json["float_nodes"]}
    assert (timing["stage"] == Stage.EVERYTHING) <= (set(timing["layers"]) <= in_float)
    assert _quantized(tmp_path / "net.int8.onnx") == (not set(timing["layers"]) <= in_float)


def test_a_result_that_is_slower_than_float_becomes_float(
    run: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[bool] = []

    def slower(original: Any, others: Any, *arguments: Any, **options: Any) -> list[Interval]:
        measured.append(any(node.op_type == "QuantizeLinear" for node in others[0].graph))
        return [Interval(median=0.8, low=0.7, high=0.9)]

    monkeypatch.setattr(quantization_search, "speedups", slower)
    monkeypatch.setattr(time_plan.TimePlan, "_fastest", lambda *_: Stage.NOTHING)
    outcome = run("quantize", model, "--calib-data", "calib.npz", "--machine-profile", "measured", "--json")
    assert outcome.code == 0, outcome.err
    # The float model is not timed beside itself.
    assert measured
    assert all(measured)
    assert not _quantized(tmp_path / "net.int8.onnx")
    assert _timing(tmp_path)["stage"] > Stage.NOTHING
    assert outcome.json["speedup"] is None


@pytest.mark.parametrize(
    ("integers", "tried"),
    [
        # What saves next to nothing is doubted all at once: nothing is left to quantize.
        ((999e3, 999e3, 999e3), 1),
        # The last layer is slow, and no other is doubtful.
        ((1e5, 1e5, 4e6), 2),
        # No layer is slow or doubtful: the next stages would be the same model.
        ((1e5, 1e5, 1e5), 1),
    ],
)
def test_each_stage_after_a_slow_result_keeps_more_layers_in_float(
    run: Any,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    integers: tuple[float, float, float],
    tried: int,
) -> None:
    layers = zip(("n_a", "n_b", "n_y"), integers, strict=True)
    times = {name: LayerTime(floats=1e6, integers=time) for name, time in layers}
    monkeypatch.setattr(time_plan, "measured_times", lambda *_, **__: MeasuredLayers(times=times, float_s=1e-3))
    monkeypatch.setattr(time_plan.TimePlan, "_fastest", lambda *_: Stage.NOTHING)
    counts: list[int] = []

    def slower(_: Any, others: Any, *__: Any, **___: Any) -> list[Interval]:
        counts.append(sum(node.op_type == "QuantizeLinear" for node in others[0].graph))
        return [Interval(median=0.8, low=0.7, high=0.9)]

    monkeypatch.setattr(quantization_search, "speedups", slower)
    outcome = run(
        "quantize", model, "--calib-data", "calib.npz", "--machine-profile", "measured", "--effort", "fast", "--json"
    )
    assert outcome.code == 0, outcome.err
    assert len(counts) == tried
    assert counts == sorted(set(counts), reverse=True)
    assert _timing(tmp_path)["stage"] == Stage.EVERYTHING
    assert not _quantized(tmp_path / "net.int8.onnx")


@pytest.mark.parametrize(
    ("ratios", "turns", "slower"),
    [
        ([0.8] * 11, 1, True),
        ([1.2] * 11, 1, False),
        ([0.99] * 11, 1, False),
        # Slower as it seems, and as fast for all that these few rounds say: more of them tell.
        ([0.9, 0.93, 0.95, 1.02, 1.03] * 2 + [0.95], 3, True),
    ],
)
def test_what_seems_slower_than_float_within_the_noise_is_timed_again(
    model: Path, monkeypatch: pytest.MonkeyPatch, ratios: list[float], turns: int, slower: bool
) -> None:
    called: list[int] = []

    def times(_: Any, *, rounds: int, advance: Any) -> tuple[np.ndarray, np.ndarray]:
        called.append(rounds)
        return 1e-3 * np.asarray(ratios), np.full(rounds, 1e-3)

    monkeypatch.setattr(speed, "interleaved_times", times)
    graph = ir.load(model)
    (found,) = speed.speedups(graph, [graph], {}, SILENT, runtime=AS_IT_IS)
    assert len(called) == turns
    assert speed.is_slower(found) == slower


@pytest.mark.parametrize(
    ("float_ms", "all_ms", "mixed_ms", "stage"),
    [
        # Equal times: more layers in float are more accurate, but the model is not left as it was.
        (1.0, 1.0, 1.0, Stage.SLOW_LAYERS),
        (1.0, 1.0, 1.01, Stage.SLOW_LAYERS),
        (1.0, 0.8, 0.9, Stage.NOTHING),
        (1.0, 0.9, 0.8, Stage.SLOW_LAYERS),
        (0.7, 0.9, 0.8, Stage.EVERYTHING),
    ],
)
def test_of_choices_that_are_equally_fast_the_more_accurate_one_is_taken(
    run: Any,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    float_ms: float,
    all_ms: float,
    mixed_ms: float,
    stage: Stage,
) -> None:
    def layer_times(*_: Any, **__: Any) -> MeasuredLayers:
        fast = LayerTime(floats=4e6, integers=1e6)
        times = {"n_a": fast, "n_b": fast, "n_y": LayerTime(floats=1e6, integers=4e6)}
        return MeasuredLayers(times=times, float_s=1e-3 * float_ms)

    known: dict[int, float] = {}

    def times_in_turns(models: Any, *_: Any, **__: Any) -> tuple[Any, ...]:
        if not known:
            known.update(zip(map(id, models), (float_ms, all_ms, mixed_ms), strict=True))
        return tuple(np.full(9, 1e-3 * known[id(model)]) for model in models)

    monkeypatch.setattr(time_plan, "measured_times", layer_times)
    monkeypatch.setattr(turns, "times_in_turns", times_in_turns)
    fast = Interval(median=1.0, low=0.9, high=1.1)
    monkeypatch.setattr(quantization_search, "speedups", lambda *_, **__: [fast])
    outcome = run(
        "quantize", model, "--calib-data", "calib.npz", "--machine-profile", "measured", "--effort", "fast", "--json"
    )
    assert outcome.code == 0, outcome.err
    assert _timing(tmp_path)["stage"] == stage
    kept = outcome.json["kept_float_for_speed"]
    expected = {Stage.NOTHING: (False, False), Stage.EVERYTHING: (True, True)}
    assert ("n_y" in kept, "n_a" in kept) == expected.get(stage, (True, False))


def test_layers_that_were_timed_in_a_slow_phase_are_timed_again(
    run: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = iter([(3e-3, 8e6), (1e-3, 2e6)])

    def layer_times(*_: Any, **__: Any) -> MeasuredLayers:
        float_s, floats = next(phases)
        times = dict.fromkeys(("n_a", "n_b", "n_y"), LayerTime(floats=floats, integers=1e6))
        return MeasuredLayers(times=times, float_s=float_s)

    monkeypatch.setattr(time_plan, "measured_times", layer_times)
    monkeypatch.setattr(turns, "times_in_turns", lambda models, *_, **__: tuple(np.full(9, 1e-3) for _ in models))
    fast = Interval(median=1.0, low=0.9, high=1.1)
    monkeypatch.setattr(quantization_search, "speedups", lambda *_, **__: [fast])
    outcome = run(
        "quantize", model, "--calib-data", "calib.npz", "--machine-profile", "measured", "--effort", "fast", "--json"
    )
    assert outcome.code == 0, outcome.err
    assert {time["floats"] for time in _timing(tmp_path)["layers"].values()} == {2e6}
    assert next(phases, None) is None


def test_a_small_result_may_be_slow_and_says_so(
    run: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Interval(median=0.8, low=0.7, high=0.9)
    monkeypatch.setattr(quantization_search, "speedups", lambda *_, **__: [slow])
    outcome = run("quantize", model, "--calib-data", "calib.npz", "--smallest")
    assert outcome.code == 0, outcome.err
    assert "0.80x as fast as float on this machine" in outcome.out
    assert "slower than the float model on this machine" in outcome.err
    assert _quantized(tmp_path / "net.int8.onnx")


def test_a_manifest_repeats_what_the_clock_chose(
    run: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_plan.TimePlan, "_fastest", lambda *_: Stage.SLOW_LAYERS)
    fast = Interval(median=1.5, low=1.4, high=1.6)
    monkeypatch.setattr(quantization_search, "speedups", lambda *_, **__: [fast])
    monkeypatch.setattr(time_plan, "measure_profile", measure_profile)
    assert run("quantize", model, "--calib-data", "calib.npz", "--machine-profile", "measured").code == 0
    first = (tmp_path / "net.int8.onnx").read_bytes()
    timing = _timing(tmp_path)
    # Kernels that the model has none of were not timed.
    products = (LayerKind.MATRIX, LayerKind.VECTOR)
    assert set(timing["profile"]["layers"]) == {LayerKind.CONV, LayerKind.NARROW, LayerKind.POINTWISE, *products}
    monkeypatch.setattr(time_plan, "measure_profile", lambda *_, **__: pytest.fail("it is recorded"))
    monkeypatch.setattr(time_plan, "measured_times", lambda *_, **__: pytest.fail("they are recorded"))
    again = run("quantize", "--locked", "net.int8.manifest.json", "--force")
    assert again.code == 0, again.err
    assert (tmp_path / "net.int8.onnx").read_bytes() == first
    assert _timing(tmp_path) == timing


def test_compilers_with_kernels_of_their_own_get_everything(run: Any, model: Path, tmp_path: Path) -> None:
    options = ("--calib-data", "calib.npz", "--machine-profile", "shipped")
    outcome = run("quantize", model, *options, "--target", "tensorrt", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["kept_float_for_speed"] == []
    assert _timing(tmp_path)["for_size"] is True
