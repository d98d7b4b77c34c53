"""How close arrays are to the ones that they stand for, written out."""

from __future__ import annotations

import numpy as np


def sqnr_db_of(expected: np.ndarray, given: np.ndarray) -> float:
    """Returns the power of what is expected over that of the difference, in dB."""
    exact = expected.astype(np.float64)
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - given).sum()))
