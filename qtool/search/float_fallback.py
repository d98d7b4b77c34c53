"""Mixed precision without an accuracy goal: keeps layers float that cost much accuracy and save little time.

Layers are sorted by the noise they cause per latency they add in float, given those before them, and prefixes of
growing length are tried, of these and of the first layers in graph order, which are noisy and have one border. The
prefix with the highest merit is kept. What it gains on a few samples is half chance, so that the noise its layers cause
alone counts as much: with its first 8 layers in float, the PP-OCR detector lost 0.3 dB on 15 samples and gained 1.3 dB
on others, where the noise of these layers said 1.5 dB.

Where that leaves a model unusable, longer ones are tried, those in graph order first: errors of early layers pass
through all later ones, and a choice that needs no per-layer measurement generalizes to other data. The PP-OCR detector
with 32 layers in float reached 19.9 dB on the samples that selected them, and 13.6 dB on others; with its first 35, it
reached 20.2 and 20.0 dB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from qtool.progress import Advance
from qtool.search.float_cost import FloatCost
from qtool.search.output_evaluator import OutputEvaluator
from qtool.search.quantized_candidate import Quantize
from qtool.search.sensitivity import LayerNoise

# Below the first figure, in dB, a model is unusable for many tasks; above the second it matches the float one.
_USABLE_DB, PERFECT_DB = 20.0, 30.0
# The weight of a decibel between the two, relative to one below both.
_COMFORT = 0.5
# The noise of layers adds up where it is small beside the signal.
_ADDITIVE_DB = 15.0
# The largest fraction of the integers' savings to give up for a model that is unusable otherwise.
_BROKEN_SHARE = 0.5
# Layers with less than this share of the noisiest one's noise are left alone while the model is usable.
_LEAST_HEARD = 0.01
# Noise that is always left, as a share.
_LEAST_LEFT = 0.01
# Layers that cost almost nothing come first, but not before one with ten times their noise.
_LEAST_SHARE = 0.005
# Up to this length, every prefix may be tried.
_SHORT = 12
# Estimated costs may be this many times too high, which timing shows: the first three convolutions of
# EfficientNet-Lite0 were expected to cost 5 % of a run in float, shortened it by 2 %, and gained 1.9 dB.
_OVERESTIMATED = 4.0
# At most so many choices are timed before the fully quantized model is taken.
_MOST_TIMED = 5
# After a choice that was too slow, only those with at most so many of its layers are timed, or one less of few.
_FEWER, _FEW_LAYERS = 0.5, 3
# Lengths that differ by less than this fraction of the best one are not told apart.
_FEW_PARTS, _MANY_PARTS = 8, 64


def weighted_db(sqnr_db: float) -> float:
    """Returns an SQNR as far as it matters: less above where a model is usable, and nothing above that of float."""
    reached = min(sqnr_db, PERFECT_DB)
    return _USABLE_DB + _COMFORT * (reached - _USABLE_DB) if reached > _USABLE_DB else reached


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatFallback:
    """One choice of layers to keep float.

    Attributes:
        layers: the layers, the most rewarding first.
        sqnr_db: SQNR of the worst output in dB with them in float.
        share: the fraction of the integers' savings that they give up; below 0 where they are faster in float.
        price: the gain in dB required for giving up a tenth of the integers' savings.
        added_up_db: the SQNR to expect from what the layers cause alone, in dB; None where noise does not add up.
    """

    layers: tuple[LayerNoise, ...]
    sqnr_db: float
    share: float
    price: float
    added_up_db: float | None = None

    @property
    def merit(self) -> float:
        """Its merit in dB: weighted SQNR, half measured and half added up, less the price of the latency."""
        added_up_db = self.sqnr_db if self.added_up_db is None else self.added_up_db
        return weighted_db(0.5 * (self.sqnr_db + added_up_db)) - 10.0 * self.price * max(self.share, 0.0)

    def kept_float(self) -> dict[str, str]:
        """Returns the nodes to keep float, each with the reason."""
        return {
            node: f"kept float for accuracy: quantizing its layer alone leaves {layer.sqnr_db:.1f} dB"
            for layer in self.layers
            for node in layer.group.nodes
        }


class Affordable(Protocol):
    """Times a choice."""

    def __call__(self, fallback: FloatFallback, share: float | None) -> FloatFallback | None:
        """Returns it with the fraction of the integers' savings that it really gives up; None where that is too much.

        Args:
            fallback: the choice, with the estimated fraction.
            share: the largest fraction; None for the default.
        """
        ...


def could_gain(sqnr_db: float) -> bool:
    """Returns whether layers in float could raise the merit of a model with ``sqnr_db``."""
    return sqnr_db < PERFECT_DB


def best_fallback(
    quantize: Quantize,
    evaluator: OutputEvaluator,
    plain: FloatFallback,
    ranked: Sequence[LayerNoise],
    in_order: Sequence[LayerNoise],
    cost: FloatCost,
    *,
    most: float,
    most_products: float = 1.0,
    every_short: bool,
    advance: Advance,
    stop: Callable[[], bool],
    affordable: Affordable | None = None,
) -> FloatFallback:
    """Returns the choice with the highest merit among those that are affordable.

    Args:
        quantize: makes the candidates.
        evaluator: measures them.
        plain: the fully quantized model, with the same price as all choices.
        ranked: the layers that may stay float.
        in_order: the same, in graph order.
        cost: the latency model.
        most: the largest fraction of the integers' savings to give up once the model is usable.
        most_products: the largest fraction of the multiply-adds in float then.
        every_short: whether every short prefix is tried, and every one near the best.
        advance: called with 1 after every try.
        stop: called before every try.
        affordable: times the best choices, whose estimated costs are doubted then; None to trust the estimates.
    """
    tried = _Line(quantize, evaluator, plain, cost, len(ranked), every_short, advance, stop)
    loudest = max((layer.share for layer in ranked), default=0.0)
    heard = [layer for layer in ranked if layer.share >= _LEAST_HEARD * loudest]
    doubt = 1.0 if affordable is None else _OVERESTIMATED
    lines = (_lined_up(heard, cost, most * doubt, most_products), in_order[:_SHORT])
    short = [fallback for line in lines for fallback in tried.along(line, most, most_products, doubt=doubt)]
    best = _best_affordable(short, affordable, None)
    if best.sqnr_db >= _USABLE_DB:
        return best
    for other in (in_order, _lined_up(ranked, cost)):
        found = _best_affordable(tried.along(other, max(most, _BROKEN_SHARE)), affordable, _BROKEN_SHARE)
        best = found if found.merit > best.merit else best
        if best.sqnr_db >= _USABLE_DB:
            break
    return best


def _best_affordable(
    found: Collection[FloatFallback], affordable: Affordable | None, share: float | None
) -> FloatFallback:
    """Returns the one with the highest merit among those that are affordable; the shortest one always is."""
    by_merit = sorted(sorted(found, key=lambda fallback: len(fallback.layers)), key=lambda fallback: -fallback.merit)
    shortest = min(found, key=lambda fallback: len(fallback.layers))
    timed, most = 0, math.inf
    for fallback in by_merit:
        if len(fallback.layers) > most:
            continue
        if not fallback.layers or affordable is None:
            return fallback
        measured = affordable(fallback, share)
        if measured is not None and measured.merit > shortest.merit:
            return measured
        length = len(fallback.layers)
        timed, most = timed + 1, max(_FEWER * length, min(length - 1, _FEW_LAYERS))
        if timed == _MOST_TIMED:
            break
    return shortest


@dataclass(frozen=True, slots=True)
class _Line:
    """Tries prefixes of sorted layers, of which there are ``layers`` in all."""

    quantize: Quantize
    evaluator: OutputEvaluator
    plain: FloatFallback
    cost: FloatCost
    layers: int
    every_short: bool
    advance: Advance
    stop: Callable[[], bool]
    known: dict[frozenset[str], FloatFallback] = field(default_factory=dict)

    def along(
        self, line: Sequence[LayerNoise], most: float, most_products: float = 1.0, *, doubt: float = 1.0
    ) -> Collection[FloatFallback]:
        """Returns prefixes of ``line``, the empty one included, that give up no more than ``most``.

        Estimated costs are divided by ``doubt``.

        Numbers of them are doubled first, then those between the best and its neighbours are tried: merit rises and
        falls slowly with the length.
        """
        lengths = self._lengths(line, most * doubt, most_products)
        tried, last = {0: self.plain}, len(lengths) - 1
        short = range(1, min(last, _SHORT) + 1) if self.every_short else ()
        places = sorted({1 << power for power in range(last.bit_length())} | {last, *short} - {0})
        while places:
            for place in places:
                if self.stop():
                    return tried.values()
                found = self._tried(line[: lengths[place]])
                tried[place] = replace(found, share=found.share / doubt)
            places = _between(tried, parts=_MANY_PARTS if self.every_short else _FEW_PARTS)
        return tried.values()

    def _tried(self, layers: Sequence[LayerNoise]) -> FloatFallback:
        names = frozenset(layer.group.layer for layer in layers)
        if names not in self.known:
            self.known[names] = self._evaluated(layers)
            self.advance(1)
        return self.known[names]

    def _evaluated(self, layers: Sequence[LayerNoise]) -> FloatFallback:
        kept = {node: "tried in float" for layer in layers for node in layer.group.nodes}
        reached = self.evaluator.sqnr_db(self.quantize(kept).model)
        return replace(
            self.plain,
            layers=tuple(layers),
            sqnr_db=reached,
            share=self._share(layers),
            added_up_db=_added_up(self.plain.sqnr_db, layers),
        )

    def _lengths(self, line: Sequence[LayerNoise], most: float, most_products: float) -> list[int]:
        """Returns how long prefixes may be, 0 first; never all layers, since that would be the float model.

        A longer one may cost less: there are fewer elements between its layers and the others.
        """
        found = [0]
        for length in range(1, min(len(line), self.layers - 1) + 1):
            names = [layer.group.layer for layer in line[:length]]
            share = self.cost.share(names)
            if share <= most and self.cost.products(names) <= most_products:
                found.append(length)
            elif share > max(most, _BROKEN_SHARE):
                break
        return found

    def _share(self, layers: Sequence[LayerNoise]) -> float:
        return self.cost.share([layer.group.layer for layer in layers])


def _between(tried: Mapping[int, FloatFallback], *, parts: int) -> list[int]:
    """Returns places halfway between the best one and its neighbours, as long as these are far enough apart.

    Args:
        tried: results so far, by place among the lengths; among equals the shortest is the best.
        parts: places closer than this fraction of the best one count as the same.
    """
    places = sorted(tried)
    best = places.index(max(places, key=lambda place: tried[place].merit))
    gaps = zip(places[max(best - 1, 0) : best + 1], places[best : best + 2], strict=False)
    return [(low + high) // 2 for low, high in gaps if high - low > max(1, places[best] // parts)]


def _added_up(plain_db: float, layers: Sequence[LayerNoise]) -> float | None:
    if plain_db < _ADDITIVE_DB:
        return None
    left = 1.0 - sum(layer.share for layer in layers)
    return plain_db - 10.0 * math.log10(max(left, _LEAST_LEFT))


def _lined_up(
    ranked: Sequence[LayerNoise], cost: FloatCost, most: float = math.inf, most_products: float = math.inf
) -> list[LayerNoise]:
    """Sorts greedily: the next layer is the one that removes most noise for the cost it adds to those before.

    Layers with which the line would give up more than ``most`` of the savings, or have more than ``most_products`` of
    the multiply-adds, are left out.
    """
    line: list[LayerNoise] = []
    names: list[str] = []
    left, reached = list(ranked), 0.0
    while left:
        shares = [cost.share([*names, layer.group.layer]) for layer in left]
        added = [max(share - reached, _LEAST_SHARE) for share in shares]
        index = max(range(len(left)), key=lambda number: left[number].share / added[number])
        layer = left.pop(index)
        if shares[index] > most or cost.products([*names, layer.group.layer]) > most_products:
            continue
        line.append(layer)
        names.append(layer.group.layer)
        reached = shares[index]
    return line
