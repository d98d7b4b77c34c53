"""Handles NaN inside a model: values that its outputs do not depend on, such as those of padding."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from qtool.calib.specs import Array


def has_nan(values: Array) -> bool:
    """Returns whether a float array holds NaN."""
    return values.size > 0 and math.isnan(values.min())


def places_without_nan(values: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """Returns the channels along ``axis`` at every position where none of them is NaN, (channels, positions)."""
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    return rows[:, ~np.isnan(rows).any(axis=0)] if has_nan(rows) else rows
