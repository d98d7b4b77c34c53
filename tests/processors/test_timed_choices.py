"""Whether a choice of float layers is fast enough, by a clock that other work disturbs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qtool.errors import InputError
from qtool.progress import SILENT
from qtool.search.float_fallback import FloatFallback
from qtool.search.node_groups import NodeGroup
from qtool.search.sensitivity import LayerNoise
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates
from qtool.workflows.tune import model_pace
from qtool.workflows.tune import times_in_turns as turns
from qtool.workflows.tune.model_pace import ModelPace
from qtool.workflows.tune.stopwatch import Stopwatch
from qtool.workflows.tune.time_plan import TimePlan
from qtool.workflows.tune.times_in_turns import ROUNDS
from qtool.workflows.tune.timing import Stage, TimedChoice, Timing, timing_from_json

_CHOICE = FloatFallback(
    layers=(LayerNoise(group=NodeGroup(layer="a", operator="Conv", nodes=("a",)), sqnr_db=30.0, share=0.3),),
    sqnr_db=27.0,
    share=0.2,
    price=0.4,
)
_MODEL = ir.from_proto(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])))


class _Candidate:
    model = _MODEL


def _candidates(kept: Mapping[str, str]) -> _Candidate:
    return _Candidate()


class _Times:
    """Keeps what is timed; a slowdown of one percent is a fiftieth of the savings."""

    def __init__(self) -> None:
        self.choices: list[TimedChoice] = []
        self.pace = ModelPace()

    def timed_choice(self, layers: object, measure: Callable[[], TimedChoice]) -> TimedChoice:
        self.choices.append(measure())
        return self.choices[-1]

    def cost(self) -> _Times:
        return self

    def share_of_slowdown(self, part: float) -> float:
        return 2.0 * part


def _judged(monkeypatch: pytest.MonkeyPatch, slower: list[float], **limits: Any) -> float | None:
    """Returns the cost found where the choice takes so many times as long as integers in each set of sessions."""
    left: Iterator[float] = iter(slower)

    def times_in_turns(models: list[ir.Model], *_: object, **__: object) -> tuple[Any, ...]:
        return tuple(np.full(ROUNDS, seconds) for seconds in (2.0, 1.0, next(left))[-len(models) :])

    monkeypatch.setattr(turns, "times_in_turns", times_in_turns)
    times = _Times()
    stopwatch = Stopwatch(_MODEL, cast(QuantizedCandidates, _candidates), {}, cast(TimePlan, times), SILENT, **limits)
    found = stopwatch(_CHOICE, None)
    # The float model is timed only where its time counts.
    saved = None if limits["most_float"] is None else 1.0
    assert [(choice.layers, choice.saved) for choice in times.choices] == [(("a",), saved)]
    return None if found is None else found.share


def test_a_choice_gets_the_cost_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _judged(monkeypatch, [1.03] * 3, most_slower=0.04, most_float=None)
    assert found == pytest.approx(0.06)


def test_a_busy_moment_does_not_rule_a_choice_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _judged(monkeypatch, [1.2, 1.0, 1.0], most_slower=0.04, most_float=None)
    assert found == pytest.approx(0.0)


def test_a_choice_that_is_too_slow_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _judged(monkeypatch, [1.06] * 3, most_slower=0.04, most_float=None) is None


def test_turns_in_which_float_takes_longer_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([(2.0, 1.0), (3.4, 1.2), (2.1, 1.0)])
    monkeypatch.setattr(turns, "times_in_turns", lambda *_, **__: [np.full(ROUNDS, each) for each in next(seconds)])
    floats, integers = turns.repeated_times([_MODEL, _MODEL], {}, SILENT, 0)
    assert floats.tolist() == [2.0] * ROUNDS + [2.1] * ROUNDS
    assert integers.tolist() == [1.0] * 2 * ROUNDS


@pytest.mark.parametrize(
    ("integers", "sets"), [([1.0, 1.0, 1.0], 2), ([1.0, 1.1, 1.1], 3), ([1.0, 1.1, 1.0], 3), ([1.9, 1.9, 1.9], 2)]
)
def test_sets_of_sessions_that_agree_are_enough(
    monkeypatch: pytest.MonkeyPatch, integers: list[float], sets: int
) -> None:
    left = iter(integers)
    monkeypatch.setattr(turns, "times_in_turns", lambda *_, **__: [np.full(ROUNDS, 2.0), np.full(ROUNDS, next(left))])
    floats, _ = turns.repeated_times([_MODEL, _MODEL], {}, SILENT, 0)
    assert len(floats) == sets * ROUNDS


@pytest.mark.parametrize(
    ("sets", "contenders"),
    [
        # Nothing brings a model in first place that takes twice as long.
        ([[2.0, 1.0]], [1]),
        ([[1.0, 2.0]], [0]),
        # 2.0 and 1.9 may change places in other sessions.
        ([[2.0, 1.9], [2.0, 1.9]], [0, 1]),
        ([[2.0, 1.9], [2.0, 2.2], [2.0, 1.9]], [0, 1]),
        # What is left out is not timed again.
        ([[2.0, 1.0, 1.1], [1.0, 1.1]], [1, 2]),
        ([[1.1, 1.0, 2.0], [1.1, 1.0]], [0, 1]),
        # The first set is repeated in a slow phase of the first model, which later ones do without.
        ([[3.0, 1.2, 1.1], [2.0, 1.0, 1.1], [1.0, 1.1]], [1, 2]),
    ],
)
@pytest.mark.usefixtures("waiting")
def test_only_models_that_may_be_the_fastest_are_timed_further(
    monkeypatch: pytest.MonkeyPatch, sets: list[list[float]], contenders: list[int]
) -> None:
    left = iter(sets)

    def times_in_turns(models: list[ir.Model], *_: object, **__: object) -> list[Any]:
        seconds = next(left)
        assert len(seconds) == len(models)
        return [np.full(ROUNDS, each) for each in seconds]

    monkeypatch.setattr(turns, "times_in_turns", times_in_turns)
    pace = ModelPace(sleep=lambda _: None)
    pace.note(2.0)
    found = turns.times_of_contenders([_MODEL] * len(sets[0]), {}, SILENT, 0, pace)
    assert list(found) == contenders
    assert next(left, None) is None
    assert len({len(times) for times in found.values()}) == 1


@pytest.mark.parametrize(("repeats", "sets"), [(True, 1), (False, 3)])
def test_what_is_measured_again_is_measured_once(monkeypatch: pytest.MonkeyPatch, repeats: bool, sets: int) -> None:
    left = iter([1.0, 1.1, 1.0])
    monkeypatch.setattr(turns, "times_in_turns", lambda *_, **__: [np.full(ROUNDS, 2.0), np.full(ROUNDS, next(left))])
    floats, _ = turns.repeated_times([_MODEL, _MODEL], {}, SILENT, 0, will_repeat=lambda seconds: repeats)
    assert len(floats) == sets * ROUNDS


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets measurements be repeated, which other tests go without."""
    monkeypatch.setattr(model_pace, "_MOST_REPEATS", 5)


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize(
    ("known", "measured", "kept", "pauses"),
    [
        # The first time is taken as it is; a longer one later is not, while the machine may recover.
        (None, [3.0], 3.0, 0),
        (2.0, [2.3], 2.3, 0),
        (2.0, [3.4, 3.4, 2.1], 2.1, 2),
        (2.0, [3.4] * 6, 3.4, 5),
    ],
)
def test_what_was_timed_in_a_slow_phase_is_timed_again(
    known: float | None, measured: list[float], kept: float, pauses: int
) -> None:
    waited: list[float] = []
    pace = ModelPace(sleep=waited.append)
    if known is not None:
        pace.note(known)
    left = iter(measured)
    times = pace.steady(lambda: [np.full(ROUNDS, next(left)), np.full(ROUNDS, 1.0)])
    assert times[0][0] == kept
    assert len(waited) == pauses
    assert next(left, None) is None


@pytest.mark.usefixtures("waiting")
def test_a_machine_that_stays_slow_is_not_waited_for_again() -> None:
    waited: list[float] = []
    pace = ModelPace(sleep=waited.append)
    pace.note(1.0)
    for _ in range(3):
        pace.steady(lambda: [np.full(ROUNDS, 2.0)])
    assert len(waited) == 5


@pytest.mark.parametrize(("most_float", "verdict"), [(0.1, True), (0.05, False)])
def test_a_limit_on_what_integers_save_counts_their_savings(
    monkeypatch: pytest.MonkeyPatch, most_float: float, verdict: bool
) -> None:
    # Integers save as much as they take: giving up a tenth makes a run a tenth slower.
    found = _judged(monkeypatch, [1.08] * 3, most_slower=0.0, most_float=most_float)
    assert (found is not None) is verdict


def test_a_lock_keeps_the_choices_that_were_timed() -> None:
    choices = (
        TimedChoice(layers=("a", "b"), slowdown=-0.01, saved=1.1),
        TimedChoice(layers=("a",), slowdown=0.3, saved=1.0),
    )
    timing = Timing(layers={}, stage=Stage.NOTHING, choices=choices)
    assert timing_from_json(json.loads(json.dumps(timing.as_json())), "m.json") == timing


def test_a_lock_with_choices_of_another_form_is_refused() -> None:
    document = {**Timing(layers={}).as_json(), "choices": [{"layers": ["a"]}]}
    with pytest.raises(InputError, match=r"m\.json does not record the times of its run"):
        timing_from_json(document, "m.json")
