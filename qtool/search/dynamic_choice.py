"""Chooses the layers that do better with dynamic quantization than with static ranges.

Static ranges have to suit every sample; where samples differ much, as tokens of text do, each of them uses a small
part of the grid or is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from qtool.progress import Advance
from qtool.search.output_evaluator import OutputEvaluator
from qtool.search.quantized_candidate import Quantize
from qtool.search.sensitivity import LayerNoise

# The least improvement in dB that is likely to hold on other samples.
_CLEAR_DB = 1.0
# Layers with a smaller share of the noise are not tried.
_NEGLIGIBLE_SHARE = 0.003


def better_dynamic(
    quantize: Callable[[Sequence[str]], Quantize],
    ranked: Sequence[LayerNoise],
    nodes: Sequence[str],
    eligible: Sequence[str],
    evaluator: OutputEvaluator,
    *,
    advance: Advance,
    stop: Callable[[], bool],
) -> tuple[LayerNoise, ...]:
    """Returns the layers that are clearly better when dynamic, with the noise that each then causes alone.

    Args:
        quantize: returns a factory of candidates in which the named layers are dynamic.
        ranked: the layers with the noise that each causes alone with static ranges.
        nodes: every node that could run on integers.
        eligible: the layers that could be dynamic.
        evaluator: measures the outputs as it did for ``ranked``.
        advance: called with 1 after every layer.
        stop: called before every layer.
    """
    found = []
    for layer in ranked:
        name = layer.group.layer
        if name not in eligible or layer.share < _NEGLIGIBLE_SHARE or math.isinf(layer.sqnr_db):
            continue
        if stop():
            break
        others = {node: "only one layer at a time is quantized" for node in nodes if node != name}
        alone = evaluator.sqnr_db(quantize([name])(others).model)
        if alone > layer.sqnr_db + _CLEAR_DB:
            share = layer.share * 10.0 ** ((layer.sqnr_db - alone) / 10.0)
            found.append(LayerNoise(group=layer.group, sqnr_db=alone, share=share))
        advance(1)
    return tuple(found)
