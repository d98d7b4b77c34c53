"""The inputs of a layer at some positions of all batches, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from qtool.weights.input_hessian import LayerInput
from qtool.weights.padding import without_padding

# Limits on the sampled positions of each layer over all batches, and on the numbers they hold; more cost time and
# memory and change little.
MOST_POSITIONS = 8192
_MOST_NUMBERS = 1 << 24


def layer_columns(
    layer: LayerInput,
    values: Sequence[npt.NDArray[np.float32]],
    masks: Sequence[npt.NDArray[np.bool_] | None],
    fewer: int = 1,
) -> npt.NDArray[np.float32]:
    """Returns the inputs of the weights, (groups, inputs, positions), of the same positions each time.

    Args:
        layer: the layer.
        values: what it reads, by batch.
        masks: the attention mask of each batch; None where it has none.
        fewer: what the limits on their number are divided by.
    """
    used = [None] * len(values) if layer.kernel else masks
    read = [without_padding(value, mask) for value, mask in zip(values, used, strict=True)]
    positions = sum(layer.positions(value.shape) for value in read)
    numbers = positions * layer.groups * layer.inputs
    every = max(-(-positions * fewer // MOST_POSITIONS), -(-numbers * fewer // _MOST_NUMBERS), 1)
    ends = [0, *accumulate(layer.positions(value.shape, every=every) for value in read)]
    columns = np.empty((layer.groups, layer.inputs, ends[-1]), np.float32)
    for value, (first, end) in zip(read, pairwise(ends), strict=True):
        layer.columns(value, every=every, out=columns[:, :, first:end])
    return columns
