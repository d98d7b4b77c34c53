"""Whether a choice of float layers is fast enough, by a clock that other work disturbs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qtool.progress import SILENT
from qtool.search.float_fallback import FloatFallback
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates
from qtool.workflows.tune import time_plan
from qtool.workflows.tune.time_plan import ROUNDS, Stopwatch

_CHOICE = FloatFallback(layers=(), sqnr_db=27.0, share=0.05, price=0.4)
_MODEL = ir.from_proto(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])))


class _Candidate:
    model = _MODEL


def _candidates(kept: Mapping[str, str]) -> _Candidate:
    return _Candidate()


def _judged(monkeypatch: pytest.MonkeyPatch, slower: list[float], **limits: Any) -> tuple[bool, int]:
    """Returns the verdict where the choice takes so many times as long as integers in each turn, and the turns."""
    left: Iterator[float] = iter(slower)
    turns = 0

    def times_in_turns(*_: object, **__: object) -> tuple[Any, ...]:
        nonlocal turns
        turns += 1
        return np.full(ROUNDS, 2.0), np.full(ROUNDS, 1.0), np.full(ROUNDS, next(left))

    monkeypatch.setattr(time_plan, "times_in_turns", times_in_turns)
    stopwatch = Stopwatch(_MODEL, cast(QuantizedCandidates, _candidates), {}, SILENT, **limits)
    return stopwatch(_CHOICE, None), turns


def test_a_choice_that_is_fast_enough_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _judged(monkeypatch, [1.03], most_slower=0.04, most_float=None) == (True, 1)


def test_a_busy_moment_does_not_rule_a_choice_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _judged(monkeypatch, [1.2, 1.0, 1.0], most_slower=0.04, most_float=None) == (True, 3)


def test_a_choice_that_is_always_too_slow_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _judged(monkeypatch, [1.06] * 3, most_slower=0.04, most_float=None) == (False, 3)


@pytest.mark.parametrize(("most_float", "verdict"), [(0.1, True), (0.05, False)])
def test_a_limit_on_what_integers_save_counts_their_savings(
    monkeypatch: pytest.MonkeyPatch, most_float: float, verdict: bool
) -> None:
    # Integers save as much as they take: giving up a tenth makes a run a tenth slower.
    assert _judged(monkeypatch, [1.08] * 3, most_slower=0.0, most_float=most_float)[0] is verdict
