"""Layers stay float where they cost much accuracy and save little, on models whose worth is made up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import pytest

from qtool.search.float_cost import FloatCost
from qtool.search.float_fallback import Affordable, FloatFallback, best_fallback, could_gain
from qtool.search.node_groups import NodeGroup
from qtool.search.output_evaluator import OutputEvaluator
from qtool.search.sensitivity import LayerNoise

_NAMES = "abcdefgh"
_MANY = "".join(chr(number) for number in range(ord("a"), ord("a") + 64))


@dataclass(frozen=True)
class _Candidate:
    model: frozenset[str]


def _quantize(kept_float: Mapping[str, str]) -> Any:
    return _Candidate(frozenset(kept_float))


class _Evaluator:
    """Measures with a function of the layers that are float."""

    def __init__(self, merit: Callable[[frozenset[str]], float]) -> None:
        self.sqnr_db = merit


class _Cost:
    """Every layer gives up the same part."""

    def __init__(self, each: float) -> None:
        self._each = each

    def share(self, layers: Collection[str]) -> float:
        return self._each * len(layers)

    def products(self, layers: Collection[str]) -> float:
        return 0.01 * len(layers)


def _best(
    merit: Callable[[frozenset[str]], float],
    noisiest: str,
    *,
    each: float = 0.02,
    most: float = 0.1,
    layer_names: str = _NAMES,
    every_short: bool = False,
    price: float = 0.4,
    noise: float = 1e-6,
    most_products: float = 1.0,
    cost: _Cost | None = None,
    affordable: Affordable | None = None,
) -> tuple[str, FloatFallback]:
    layers = {
        name: LayerNoise(
            group=NodeGroup(layer=name, operator="Conv", nodes=(name,)),
            sqnr_db=30.0,
            share=noise / (1 + noisiest.index(name)) if name in noisiest else 0.001 * noise,
        )
        for name in layer_names
    }
    found = best_fallback(
        _quantize,
        cast(OutputEvaluator, _Evaluator(merit)),
        FloatFallback(layers=(), sqnr_db=merit(frozenset()), share=0.0, price=price),
        sorted(layers.values(), key=lambda layer: -layer.share),
        [layers[name] for name in layer_names],
        cast(FloatCost, cost or _Cost(each)),
        most=most,
        most_products=most_products,
        every_short=every_short,
        advance=lambda units: None,
        stop=lambda: False,
        affordable=affordable,
    )
    return "".join(sorted(layer.group.layer for layer in found.layers)), found


def test_a_layer_that_ruins_much_and_saves_little_stays_float() -> None:
    names, found = _best(lambda kept: 27.0 if "d" in kept else 22.0, "db")
    assert (names, found.sqnr_db, found.share) == ("d", 27.0, 0.02)
    assert found.kept_float() == {"d": "kept float for accuracy: quantizing its layer alone leaves 30.0 dB"}


def test_decibels_that_cost_too_much_are_not_bought() -> None:
    # 1 dB of comfort is worth half of what it costs to give up a tenth.
    assert _best(lambda kept: 22.0 + 0.1 * len(kept), "abcdefgh")[0] == ""


def test_at_a_lower_price_more_decibels_are_bought() -> None:
    assert _best(lambda kept: 22.0 + 0.1 * len(kept), "abcdefgh", price=0.1)[0] == "abcde"


def test_the_first_layers_stay_float_together_where_each_alone_would_cost_too_much() -> None:
    class _Border(_Cost):
        """Costs what the border costs: much behind the first and the second layer, little behind the third."""

        def share(self, layers: Collection[str]) -> float:
            return {"": 0.0, "abc": 0.05}.get("".join(sorted(layers)), 0.2)

    names, found = _best(lambda kept: 28.0 if set("abc") <= kept else 24.0, "ab", cost=_Border(0.0))
    assert (names, found.sqnr_db) == ("abc", 28.0)


def test_after_a_choice_that_is_too_slow_clearly_smaller_ones_are_timed() -> None:
    timed = []

    def affordable(fallback: FloatFallback, share: float | None) -> FloatFallback | None:
        timed.append(len(fallback.layers))
        return fallback if len(fallback.layers) <= 2 else None

    names, _ = _best(
        lambda kept: 22.0 + 0.5 * len(kept), _MANY[:32], layer_names=_MANY[:32], each=0.001, affordable=affordable
    )
    assert 1 <= len(names) <= 2
    assert timed[0] == 31
    assert all(after <= max(0.5 * before, min(before - 1, 3)) for before, after in pairwise(timed))


def test_noise_that_layers_cause_alone_outweighs_a_few_samples() -> None:
    # The first layer causes half of all noise: 3 dB, whatever a few samples say.
    names, found = _best(lambda kept: 22.0 - 0.5 * len(kept), "c", noise=0.5)
    assert (names, found.sqnr_db) == ("c", 21.5)
    assert found.added_up_db == pytest.approx(22.0 + 3.01, abs=0.01)


def test_noise_does_not_add_up_where_little_else_is_left() -> None:
    assert _best(lambda kept: 12.0 - 0.5 * len(kept), "c", noise=0.5)[0] == ""


def test_a_layer_with_too_many_multiply_adds_is_passed_over() -> None:
    class _Heavy(_Cost):
        def products(self, layers: Collection[str]) -> float:
            return sum(0.5 if layer == "d" else 0.01 for layer in layers)

    names, _ = _best(lambda kept: 22.0 + 2.0 * len(kept), "dba", most_products=0.05, cost=_Heavy(0.02))
    assert names[:2] == "ab"
    assert "d" not in names


def test_no_more_is_given_up_than_allowed() -> None:
    names, found = _best(lambda kept: 22.0 + 2.0 * len(kept), "abcdefgh", most=0.05)
    assert (len(names), found.share) == (2, 0.04)


def test_a_broken_model_may_give_up_more_and_begins_with_its_first_layers() -> None:
    def merit(kept: frozenset[str]) -> float:
        return 21.0 if kept >= set("abcd") else 12.0

    names, found = _best(merit, "hg", each=0.08)
    assert (names, found.sqnr_db) == ("abcd", 21.0)


@pytest.mark.parametrize("enough", [1, 5, 13, 21, 40, 63])
def test_few_tries_find_how_long_a_line_has_to_be(enough: int) -> None:
    tries = []

    def merit(kept: frozenset[str]) -> float:
        tries.append(len(kept))
        return 20.0 + 0.15 * min(len(kept), enough)

    names, _ = _best(merit, _MANY, each=0.001, most=1.0, layer_names=_MANY)
    assert enough <= len(names) <= enough + max(enough // 8, 1)
    assert len(tries) <= 20


@pytest.mark.parametrize(("enough", "every_short", "taken"), [(7, False, 0), (7, True, 7), (11, True, 11)])
def test_a_best_search_finds_a_length_that_stands_out_alone(enough: int, every_short: bool, taken: int) -> None:
    names, _ = _best(
        lambda kept: 26.0 if len(kept) == enough else 21.0,
        _MANY,
        each=0.001,
        most=1.0,
        layer_names=_MANY,
        every_short=every_short,
    )
    assert len(names) == taken


def test_nothing_is_bought_for_a_model_that_is_as_good_as_float() -> None:
    assert could_gain(29.9)
    assert not could_gain(30.0)


@pytest.mark.parametrize("sqnr_db", [30.0, 45.0])
def test_more_than_enough_is_worth_as_much_as_enough(sqnr_db: float) -> None:
    enough = FloatFallback(layers=(), sqnr_db=30.0, share=0.1, price=0.4)
    assert replace(enough, sqnr_db=sqnr_db).merit == enough.merit


def test_the_clock_has_the_last_word_on_costs() -> None:
    # By estimates, three layers would give up more than is allowed; they really cost nothing.
    def affordable(fallback: FloatFallback, share: float | None) -> FloatFallback | None:
        return replace(fallback, share=0.0)

    def merit(kept: frozenset[str]) -> float:
        return 28.0 if set("abc") <= kept else 24.0

    names, found = _best(merit, "ab", each=0.08, affordable=affordable)
    assert (names, found.share) == ("abc", 0.0)
    assert _best(merit, "ab", each=0.08)[0] == ""


def test_layers_that_cost_more_than_they_gain_are_not_kept_after_timing() -> None:
    def affordable(fallback: FloatFallback, share: float | None) -> FloatFallback | None:
        return replace(fallback, share=0.5)

    names, _ = _best(lambda kept: 22.0 + 0.2 * len(kept), "ab", each=0.01, affordable=affordable)
    assert names == ""
