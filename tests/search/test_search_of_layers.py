from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from qtool.search.accuracy_goal import Goal
from qtool.search.accuracy_search import MixedPrecisionSearch, by_noise_per_cost
from qtool.search.node_groups import NodeGroup
from qtool.search.output_evaluator import Assessment
from qtool.search.sensitivity import LayerNoise


def _layers(powers: Mapping[str, float]) -> list[LayerNoise]:
    total = sum(powers.values())
    layers = [
        LayerNoise(
            group=NodeGroup(layer=name, operator="Conv", nodes=(name,)),
            sqnr_db=-10 * math.log10(power),
            share=power / total,
        )
        for name, power in powers.items()
    ]
    return sorted(layers, key=lambda layer: layer.sqnr_db)


def _search(powers: Mapping[str, float], min_sqnr_db: float) -> MixedPrecisionSearch:
    """A search over a model whose layers' noise adds up, and nothing else."""

    def quantize(kept_float: Mapping[str, str]) -> SimpleNamespace:
        return SimpleNamespace(model=sum(power for name, power in powers.items() if name not in kept_float))

    evaluator = SimpleNamespace(
        assess=lambda noise: Assessment(sqnr_db=-10 * math.log10(noise), agreement=None, top1_drop=None)
    )
    return MixedPrecisionSearch(quantize, evaluator, Goal(min_sqnr_db=min_sqnr_db), advance=lambda _: None)


def _kept(search: MixedPrecisionSearch) -> set[str]:
    return {layer.group.layer for layer in search.best.layers}


@pytest.mark.parametrize("seed", range(20))
def test_no_smaller_choice_would_have_done(seed: int) -> None:
    generator = np.random.default_rng(seed)
    powers = {f"layer {number}": float(power) for number, power in enumerate(10 ** generator.uniform(-6, -1, 9))}
    goal = float(generator.uniform(15, 35))
    search = _search(powers, goal)
    search.run(_layers(powers), dict.fromkeys(powers, 1e-3), stop=lambda: False)
    enough = [
        len(choice)
        for size in range(len(powers))
        for choice in combinations(powers, size)
        if -10 * math.log10(sum(power for name, power in powers.items() if name not in choice)) >= goal
    ]
    assert search.best.met == bool(enough)
    if enough:
        assert len(search.best.layers) == min(enough)


def test_what_is_free_comes_before_what_is_dear() -> None:
    layers = _layers({"dear": 0.02, "cheap": 0.01, "free": 0.015, "quiet and free": 1e-5})
    costs = {"dear": 1e-3, "cheap": 1e-4, "free": -1e-5, "quiet and free": 0.0}
    order = [layer.group.layer for layer in by_noise_per_cost(layers, costs)]
    assert order == ["free", "cheap", "dear", "quiet and free"]


def test_a_dear_layer_goes_back_to_integers_where_cheap_ones_will_do() -> None:
    powers = {"dear": 0.02, "a": 0.01, "b": 0.01, "c": 1e-6}
    search = _search(powers, 16.0)
    search.run(_layers(powers), {"dear": 1e-2, "a": 1e-5, "b": 1e-5, "c": 1e-5}, stop=lambda: False)
    assert _kept(search) == {"a", "b"}


def test_few_choices_are_tried() -> None:
    powers = {f"layer {number}": 10 ** (-2 - number / 50) for number in range(200)}
    search = _search(powers, 10.0)
    search.run(_layers(powers), dict.fromkeys(powers, 1e-3), stop=lambda: False)
    assert search.best.met
    assert search.tried < 2 * math.log2(200) + len(search.best.layers) + 2


def test_the_best_is_known_whenever_the_search_stops() -> None:
    powers = {f"layer {number}": 10 ** (-1 - number / 5) for number in range(12)}
    merit: list[float] = []
    for tries in range(8):
        search = _search(powers, 25.0)
        search.run(_layers(powers), dict.fromkeys(powers, 1e-3), stop=partial(next, iter([False] * tries), True))
        merit.append(search.best.assessment.sqnr_db if not search.best.met else math.inf)
    assert merit == sorted(merit)
    assert merit[-1] == math.inf
