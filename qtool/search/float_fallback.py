"""Keeps the layers float that cost much accuracy and save little time, when nobody has asked for a figure.

Layers are lined up by the noise they cause for what they cost in float beside those before them, and beginnings of that
line are tried, each longer than the one before. The one that is worth most is kept. Where that leaves a model unusable,
longer beginnings are tried, those of the model itself first: errors of early layers go through all that follow, and a
choice that needs no measuring of single layers holds for other data as well. The PP-OCR detector with 32 layers in
float came to 19.9 dB on the samples that chose them among all, and to 13.6 dB on others; with its first 35, to 20.2 and
20.0 dB.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from qtool.progress import Advance
from qtool.search.float_cost import FloatCost
from qtool.search.output_evaluator import OutputEvaluator
from qtool.search.quantized_candidate import Quantize
from qtool.search.sensitivity import LayerNoise

# Below the first figure, in dB, a model is broken for many uses; beyond the second nobody tells it from the float one.
_USABLE_DB, PERFECT_DB = 20.0, 30.0
# What a decibel between the two is worth beside one below both.
_COMFORT = 0.5
# So much of what integers save may be given up for a model that is broken otherwise.
_BROKEN_SHARE = 0.5
# Layers that cost next to nothing come first, but not before one with ten times their noise.
_LEAST_SHARE = 0.005
# Up to this length, every beginning of a line may be tried.
_SHORT = 12
# So many choices are timed, before integers everywhere are taken.
_MOST_TIMED = 5
# Lengths are told apart down to this part of the best one.
_FEW_PARTS, _MANY_PARTS = 8, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatFallback:
    """Is one choice of layers to keep float.

    Attributes:
        layers: the layers, the most rewarding first.
        sqnr_db: SQNR of the worst output in dB with them in float.
        share: which part of what integers save they give up; below 0 where they are faster in float.
        price: what it costs to give up a tenth of what integers save, in dB.
    """

    layers: tuple[LayerNoise, ...]
    sqnr_db: float
    share: float
    price: float

    @property
    def worth(self) -> float:
        """What it is worth, in dB."""
        reached = min(self.sqnr_db, PERFECT_DB)
        if reached > _USABLE_DB:
            reached = _USABLE_DB + _COMFORT * (reached - _USABLE_DB)
        return reached - 10.0 * self.price * max(self.share, 0.0)

    def kept_float(self) -> dict[str, str]:
        """Returns the nodes to keep float, each with the reason."""
        return {
            node: f"kept float for accuracy: its layer alone on integers leaves {layer.sqnr_db:.1f} dB"
            for layer in self.layers
            for node in layer.group.nodes
        }


class Affordable(Protocol):
    """Says whether a choice saves enough time."""

    def __call__(self, bargain: FloatFallback, share: float | None) -> bool:
        """Tells whether it gives up no more than ``share`` of what integers save; None for what is usual."""
        ...


def could_gain(sqnr_db: float) -> bool:
    """Tells whether layers in float could make a model with ``sqnr_db`` worth more."""
    return sqnr_db < PERFECT_DB


def best_fallback(
    quantize: Quantize,
    judge: OutputEvaluator,
    plain: FloatFallback,
    ranked: Sequence[LayerNoise],
    in_order: Sequence[LayerNoise],
    cost: FloatCost,
    *,
    most: float,
    every_short: bool,
    advance: Advance,
    stop: Callable[[], bool],
    affordable: Affordable | None = None,
) -> FloatFallback:
    """Returns the choice that is worth most, of those that are affordable.

    Args:
        quantize: makes the variants.
        judge: measures them.
        plain: integers everywhere, with the price that others have, too.
        ranked: the layers that may stay float.
        in_order: the same, in graph order.
        cost: knows what layers cost in float.
        most: the largest part of what integers save that may be given up once the model is usable.
        every_short: whether every short beginning of a line is tried, and every one near the best.
        advance: called with 1 after every try.
        stop: asked before every try.
        affordable: asked about choices that are worth most by estimates, whether they really save what they should;
            None to believe the estimates.
    """
    tried = _Line(quantize, judge, plain, cost, every_short, advance, stop)
    line = _lined_up(ranked, cost)
    best = _best_affordable(tried.along(line, most), affordable, None)
    for other in (in_order, line):
        if best.sqnr_db >= _USABLE_DB:
            break
        found = _best_affordable(tried.along(other, max(most, _BROKEN_SHARE)), affordable, _BROKEN_SHARE)
        best = found if found.worth > best.worth else best
    return best


def _best_affordable(
    found: Collection[FloatFallback], affordable: Affordable | None, share: float | None
) -> FloatFallback:
    """Returns the one that is worth most, of those that are affordable; the shortest one is in any case."""
    by_worth = sorted(sorted(found, key=lambda bargain: len(bargain.layers)), key=lambda bargain: -bargain.worth)
    for bargain in by_worth[:_MOST_TIMED]:
        if not bargain.layers or affordable is None or affordable(bargain, share):
            return bargain
    return min(found, key=lambda bargain: len(bargain.layers))


@dataclass(frozen=True, slots=True)
class _Line:
    """Tries beginnings of lines of layers."""

    quantize: Quantize
    judge: OutputEvaluator
    plain: FloatFallback
    cost: FloatCost
    every_short: bool
    advance: Advance
    stop: Callable[[], bool]

    def along(self, line: Sequence[LayerNoise], most: float) -> Collection[FloatFallback]:
        """Returns beginnings of ``line``, none among them, that give up no more than ``most``.

        Lengths twice the one before are tried first, then those between the best and its neighbours: what a beginning
        is worth rises and falls slowly along the line.
        """
        longest = self._longest(line, most)
        tried = {0: self.plain}
        short = range(1, min(longest, _SHORT) + 1) if self.every_short else ()
        lengths = sorted({1 << power for power in range(longest.bit_length())} | {longest, *short} - {0})
        while lengths:
            for length in lengths:
                if self.stop():
                    return tried.values()
                tried[length] = self._tried(line[:length])
                self.advance(1)
            lengths = _between(tried, parts=_MANY_PARTS if self.every_short else _FEW_PARTS)
        return tried.values()

    def _tried(self, layers: Sequence[LayerNoise]) -> FloatFallback:
        kept = {node: "tried in float" for layer in layers for node in layer.group.nodes}
        reached = self.judge.sqnr_db(self.quantize(kept).model)
        return replace(self.plain, layers=tuple(layers), sqnr_db=reached, share=self._share(layers))

    def _longest(self, line: Sequence[LayerNoise], most: float) -> int:
        """Returns how long a beginning may be; a model all in float is no bargain."""
        for length in range(1, len(line)):
            if self._share(line[:length]) > most:
                return length - 1
        return max(len(line) - 1, 0)

    def _share(self, layers: Sequence[LayerNoise]) -> float:
        return self.cost.share([layer.group.layer for layer in layers])


def _best(found: Iterable[FloatFallback]) -> FloatFallback:
    """Returns the one that is worth most, and among equals the first: the one with the fewest layers comes first."""
    return max(sorted(found, key=lambda bargain: len(bargain.layers)), key=lambda bargain: bargain.worth)


def _between(tried: Mapping[int, FloatFallback], *, parts: int) -> list[int]:
    """Returns lengths half way between the best one and its neighbours, as long as these are far enough apart.

    Args:
        tried: by length, what came of those tried so far.
        parts: lengths closer than this part of the best one are taken for the same.
    """
    lengths = sorted(tried)
    place = lengths.index(len(_best(tried.values()).layers))
    gaps = zip(lengths[max(place - 1, 0) : place + 1], lengths[place : place + 2], strict=False)
    return [(low + high) // 2 for low, high in gaps if high - low > max(1, lengths[place] // parts)]


def _lined_up(ranked: Sequence[LayerNoise], cost: FloatCost) -> list[LayerNoise]:
    """Puts next, again and again, the layer that takes most noise away for what it adds to the cost of those before."""
    line: list[LayerNoise] = []
    names: list[str] = []
    left, reached = list(ranked), 0.0
    while left:
        added = [max(cost.share([*names, layer.group.layer]) - reached, _LEAST_SHARE) for layer in left]
        index = max(range(len(left)), key=lambda number: left[number].share / added[number])
        line.append(left.pop(index))
        names.append(line[-1].group.layer)
        reached = cost.share(names)
    return line
