"""Corrections are kept when the outputs say so, and each is said to gain what it gains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import pytest

from qtool.search.correction_ablation import CorrectionAblation, Gain
from qtool.search.output_evaluator import OutputEvaluator


@dataclass(frozen=True)
class _Candidates:
    """Stands for variants whose worth is known: the model is the set of corrections in it."""

    made: frozenset[str] = frozenset()

    def __call__(self, kept_float: Mapping[str, str]) -> Any:
        return _Candidate(self.made | kept_float.keys())


@dataclass(frozen=True)
class _Candidate:
    model: frozenset[str]


class _Evaluator:
    """Knows what each set is worth; others are worth nothing."""

    def __init__(self, merit: Mapping[str, float]) -> None:
        self._merit = {frozenset(names.split()): decibels for names, decibels in merit.items()}

    def sqnr_db(self, model: Any) -> float:
        return self._merit.get(frozenset(model), 0.0)


def _ablation(merit: Mapping[str, float]) -> CorrectionAblation:
    return CorrectionAblation(cast(OutputEvaluator, _Evaluator(merit)))


def _with(name: str) -> Any:
    return lambda candidates: replace(candidates, made=candidates.made | {name})


def _best(merit: Mapping[str, float]) -> tuple[frozenset[str], list[Gain]]:
    ablation = _ablation(merit)
    tried: list[int] = []
    found = ablation.best(_Candidates(), {name: _with(name) for name in ("a", "b")}, advance=tried.append)
    assert sum(tried) <= 4
    return found.made, ablation.gains


def test_corrections_that_only_help_together_are_found() -> None:
    made, gains = _best({"": 20, "a": 18, "b": 17, "a b": 25})
    assert made == {"a", "b"}
    assert gains == [
        Gain(correction="a", before_db=17, after_db=25, kept=True),
        Gain(correction="b", before_db=18, after_db=25, kept=True),
    ]


def test_a_correction_that_harms_is_left_out_and_said_so() -> None:
    made, gains = _best({"": 20, "a": 24, "b": 15, "a b": 21})
    assert made == {"a"}
    assert gains[1] == Gain(correction="b", before_db=24, after_db=21, kept=False)


def test_a_hair_of_harm_is_no_reason_to_leave_one_out() -> None:
    assert _best({"": 20, "a": 24, "b": 20, "a b": 23.95})[0] == {"a", "b"}


def test_sets_far_from_the_best_are_not_tried() -> None:
    ablation = _ablation({"a b c d": 25, "a b c": 24, "a b d": 24, "a c d": 24, "b c d": 24})
    tried: list[int] = []
    found = ablation.best(_Candidates(), {name: _with(name) for name in "abcd"}, advance=tried.append)
    assert found.made == set("abcd")
    assert sum(tried) == 5
    assert [gain.before_db for gain in ablation.gains] == [24] * 4


@pytest.mark.parametrize(("always", "expected"), [(False, frozenset()), (True, frozenset({"x"}))])
def test_candidates_that_harm_are_taken_only_when_asked_for(always: bool, expected: frozenset[str]) -> None:
    ablation = _ablation({"": 20, "x": 19, "y": 18})
    attempts = {name: partial(_Candidates, frozenset({name})) for name in ("y", "x")}
    assert ablation.first_of(_Candidates(), attempts, {}, always=always).made == expected
    assert [gain.correction for gain in ablation.gains] == ["y", "x"]


def test_what_comes_behind_a_candidate_that_helps_is_not_made() -> None:
    def never() -> _Candidates:
        raise AssertionError("the first one helps")

    ablation = _ablation({"": 20, "x": 21})
    assert ablation.first_of(
        _Candidates(), {"x": partial(_Candidates, frozenset("x")), "y": never}, {}, always=False
    ).made


def test_candidates_are_judged_with_the_nodes_that_stay_float() -> None:
    ablation = _ablation({"": 30, "n": 20, "x": 10, "x n": 25})
    attempts = {"x": partial(_Candidates, frozenset({"x"}))}
    assert ablation.first_of(_Candidates(), attempts, {"n": "why"}, always=False).made == {"x"}


def test_what_harms_by_the_other_measure_is_not_taken() -> None:
    attempts = {name: partial(_Candidates, frozenset({name})) for name in ("x", "y")}
    evaluator = cast(OutputEvaluator, _Evaluator({"": 20, "x": 25, "y": 22}))
    ablation = CorrectionAblation(evaluator, veto=cast(OutputEvaluator, _Evaluator({"": 15, "x": 12, "y": 14.95})))
    assert ablation.first_of(_Candidates(), attempts, {}, always=False).made == {"y"}
    assert [gain.kept for gain in ablation.gains] == [False, True]


@pytest.mark.parametrize(("after", "doubt_db", "kept"), [(20.0, 0.0, True), (19.4, 0.0, False), (19.4, 1.0, True)])
def test_a_change_of_the_float_model_may_harm_only_in_doubt(after: float, doubt_db: float, kept: bool) -> None:
    ablation = _ablation({"": 20.0, "x": after})
    before, changed = cast(Any, frozenset()), cast(Any, frozenset({"x"}))
    assert ablation.helps("SmoothQuant", before, changed, always=False, doubt_db=doubt_db) is kept
    assert ablation.helps("SmoothQuant", before, changed, always=True) is True
    assert ablation.gains[0] == Gain(correction="SmoothQuant", before_db=20.0, after_db=after, kept=kept)


def test_the_start_that_refining_takes_furthest_is_taken() -> None:
    ablation = _ablation({"x": 21.0, "y": 20.0, "x a": 24.0, "y a": 25.0, "y b": 19.0, "y a b": 25.5, "x a b": 23.0})
    starts = [_Candidates(frozenset({name})) for name in "xy"]
    corrections = {name: _with(name) for name in "ab"}
    place, made = ablation.better_of(
        starts, lambda start: ablation.best(start, corrections, advance=lambda units: None)
    )
    assert (place, made.made) == (1, {"y", "a", "b"})
    assert [(gain.before_db, gain.after_db) for gain in ablation.gains] == [(19.0, 25.5), (25.0, 25.5)]


def test_what_was_undone_is_not_said_to_be_kept() -> None:
    ablation = _ablation({"": 20.0, "x": 21.0})
    for name in ("cross-layer equalization", "others"):
        ablation.helps(name, cast(Any, frozenset()), cast(Any, frozenset({"x"})), always=False)
    ablation.undo({"cross-layer equalization"})
    assert [gain.kept for gain in ablation.gains] == [False, True]
