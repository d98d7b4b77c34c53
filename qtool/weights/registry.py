"""Names every algorithm that chooses the integers of weights by their layers' inputs, in the order in which they work.

A new algorithm is a new file and an entry in ``WEIGHT_ALGORITHMS``: quantization then tries it, alone and beside the
others, and keeps it where the outputs come closer to float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qtool.weights.weight_problem import WeightAlgorithm

CLIPPING, GPTQ = "weight clipping", "GPTQ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Is one algorithm.

    Attributes:
        location: ``module:function`` of a ``WeightAlgorithm``.
        reads_bias: whether its result depends on the layer's bias.
    """

    location: str
    reads_bias: bool = True


WEIGHT_ALGORITHMS: Mapping[str, Entry] = {
    CLIPPING: Entry(location="qtool.weights.clipping:clipped"),
    GPTQ: Entry(location="qtool.weights.gptq_layer:guided", reads_bias=False),
}


def algorithms_named(names: Collection[str]) -> Iterator[WeightAlgorithm]:
    """Yields the algorithms of these names, in the order in which they work."""
    for name, entry in WEIGHT_ALGORITHMS.items():
        if name in names:
            module, _, attribute = entry.location.partition(":")
            algorithm: WeightAlgorithm = getattr(import_module(module), attribute)
            yield algorithm


def read_biases(names: Collection[str]) -> bool:
    """Tells whether what algorithms of these names find depends on the layer's bias."""
    return any(WEIGHT_ALGORITHMS[name].reads_bias for name in names)
