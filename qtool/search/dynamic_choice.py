"""Chooses the layers that do better with ranges found as the model runs than with ranges fixed in advance.

Fixed ranges have to suit every sample; where samples differ much, as the tokens of texts do, each of them uses a small
part of the grid, or is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from qtool.progress import Advance
from qtool.search.output_evaluator import OutputEvaluator
from qtool.search.quantized_candidate import Quantize
from qtool.search.sensitivity import LayerNoise

# Only a clear difference outlives other samples, in dB.
_CLEAR_DB = 1.0
# Layers whose part of the noise is smaller than this are not worth a look.
_NEGLIGIBLE_SHARE = 0.003


def better_dynamic(
    quantize: Callable[[Sequence[str]], Quantize],
    ranked: Sequence[LayerNoise],
    nodes: Sequence[str],
    eligible: Sequence[str],
    judge: OutputEvaluator,
    *,
    advance: Advance,
    stop: Callable[[], bool],
) -> tuple[LayerNoise, ...]:
    """Returns the layers, with the noise they cause alone when dynamic, that are clearly better so.

    Args:
        quantize: returns what makes variants in which the named layers are dynamic.
        ranked: the layers with the noise that each causes alone with fixed ranges.
        nodes: every node that could run on integers.
        eligible: the layers that could be dynamic.
        judge: measures the outputs as it did for ``ranked``.
        advance: called with 1 after every layer.
        stop: asked before every layer.
    """
    found = []
    for layer in ranked:
        name = layer.group.layer
        if name not in eligible or layer.share < _NEGLIGIBLE_SHARE or math.isinf(layer.sqnr_db):
            continue
        if stop():
            break
        others = {node: "only one layer at a time is quantized" for node in nodes if node != name}
        alone = judge.sqnr_db(quantize([name])(others).model)
        if alone > layer.sqnr_db + _CLEAR_DB:
            share = layer.share * 10.0 ** ((layer.sqnr_db - alone) / 10.0)
            found.append(LayerNoise(group=layer.group, sqnr_db=alone, share=share))
        advance(1)
    return tuple(found)
