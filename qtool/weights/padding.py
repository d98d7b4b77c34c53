"""Tells the tokens of a batch from what only fills its sequences: padding reaches no output."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qtool.calib.specs import Feed


def mask_of(feed: Feed) -> npt.NDArray[np.bool_] | None:
    """Returns the attention mask of a batch, bool, (samples, steps), or None where it has none.

    A mask is an input of integers or booleans with these two axes, with ones and zeros and nothing else; one that is
    called a mask comes first, and types of tokens, which look alike, are none.
    """
    for name in sorted(feed, key=lambda name: "mask" not in name.lower()):
        array = feed[name]
        if array.ndim == 2 and array.dtype.kind in "iub" and "type" not in name.lower():
            filled = np.asarray(array == 1)
            if filled.any() and not filled.all() and np.array_equal(array, filled):
                return filled
    return None


def without_padding(value: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.float32]:
    """Returns the rows of ``value`` that ``mask`` keeps, where their shapes match.

    There may be more padding than text.
    """
    if mask is None or value.ndim < 2:
        return value
    if value.ndim == 3 and value.shape[:2] == mask.shape:
        return value[mask]
    if value.ndim == 2 and value.shape[0] == mask.size:
        return value[mask.reshape(-1)]
    return value
