"""Keeps the layers float that cost much accuracy and save little time, when nobody has asked for a figure.

Layers are lined up by the noise they cause for the multiply-adds they take, and beginnings of that line are tried, each
longer than the one before. The one that is worth most is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qtool.progress import Advance
from qtool.search.output_judge import OutputJudge
from qtool.search.sensitivity import LayerNoise
from qtool.search.variant import Quantize

# Below the first figure, in dB, a model is broken for many uses; beyond the second nobody tells it from the float one.
_USABLE_DB, _PERFECT_DB = 20.0, 30.0
# What a decibel between the two is worth beside one below both.
_COMFORT = 0.5
# What a tenth of the multiply-adds in float costs, in dB.
_PRICE = 1.0
# A broken model may take more of them than a usable one.
_BROKEN_SHARE = 0.5
# Layers that compute next to nothing come first, but not before one with ten times their noise.
_LEAST_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Bargain:
    """Is one choice of layers to keep float.

    Attributes:
        layers: the layers, the most rewarding first.
        sqnr_db: SQNR of the worst output in dB with them in float.
        share: their part of the multiply-adds, 0 to 1.
    """

    layers: tuple[LayerNoise, ...]
    sqnr_db: float
    share: float

    @property
    def worth(self) -> float:
        """What it is worth, in dB."""
        reached = min(self.sqnr_db, _PERFECT_DB)
        if reached > _USABLE_DB:
            reached = _USABLE_DB + _COMFORT * (reached - _USABLE_DB)
        return reached - 10.0 * _PRICE * self.share

    def kept_float(self) -> dict[str, str]:
        """Returns the nodes to keep float, each with the reason."""
        return {
            node: f"kept float: its layer alone on integers leaves {layer.sqnr_db:.1f} dB"
            for layer in self.layers
            for node in layer.group.nodes
        }


def could_gain(sqnr_db: float) -> bool:
    """Tells whether layers in float could make a model with ``sqnr_db`` worth more."""
    return sqnr_db < _PERFECT_DB


def best_bargain(
    quantize: Quantize,
    judge: OutputJudge,
    plain_db: float,
    ranked: Sequence[LayerNoise],
    shares: Mapping[str, float],
    *,
    most: float,
    advance: Advance,
    stop: Callable[[], bool],
) -> Bargain:
    """Returns the choice that is worth most.

    Args:
        quantize: makes the variants.
        judge: measures them.
        plain_db: SQNR of the worst output with integers everywhere.
        ranked: the layers that may stay float.
        shares: each layer's part of the multiply-adds.
        most: the largest part that may stay float once the model is usable.
        advance: called with 1 after every try.
        stop: asked before every try.
    """
    line = sorted(ranked, key=lambda layer: layer.share / max(shares[layer.group.layer], _LEAST_SHARE), reverse=True)
    best = last = Bargain(layers=(), sqnr_db=plain_db, share=0.0)
    for length in _lengths(len(line)):
        layers = tuple(line[:length])
        share = sum(shares[layer.group.layer] for layer in layers)
        allowed = most if last.sqnr_db >= _USABLE_DB else max(most, _BROKEN_SHARE)
        if share > allowed or stop():
            break
        kept = {node: "tried in float" for layer in layers for node in layer.group.nodes}
        last = Bargain(layers=layers, sqnr_db=judge.sqnr_db(quantize(kept).model), share=share)
        if last.worth > best.worth or best.sqnr_db == -math.inf:
            best = last
        advance(1)
    return best


def _lengths(count: int) -> list[int]:
    """Returns 1, 2, 3, 4, 6, 8, 12, 16, ... below ``count``: a model all in float is no bargain."""
    found, length = [1, 2, 3], 4
    while length < count:
        found += [length, length + length // 2]
        length *= 2
    return [length for length in found if length < count]
