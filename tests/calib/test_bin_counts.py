"""Counts by bin equal those of numpy, in little memory."""

from __future__ import annotations

import pickle
from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qtool.calib.bin_counts import BinCounts

_SIZE = 1 << 12
_BINS = st.lists(st.integers(0, _SIZE - 1), max_size=30)


@given(st.lists(_BINS, max_size=5))
def test_counts_equal_those_of_numpy_and_travel(batches: list[list[int]]) -> None:
    counts = BinCounts(_SIZE)
    for batch in batches:
        counts.count(np.array(batch, np.int64))
    expected = np.bincount(np.array([*chain(*batches)], np.int64), minlength=_SIZE)
    assert np.array_equal(counts.dense(), expected)
    occupied = counts.occupied()
    assert np.array_equal(occupied.bins, np.flatnonzero(expected))
    assert np.array_equal(occupied.counts, expected[occupied.bins])
    assert pickle.loads(pickle.dumps(counts)) == counts
    counts.put(occupied)
    assert np.array_equal(counts.dense(), 2 * expected)


def test_a_statistic_that_is_pickled_takes_no_more_than_its_bins() -> None:
    counts = BinCounts(1 << 17)
    counts.count(np.arange(100, dtype=np.int64))
    assert len(pickle.dumps(counts)) < 4000
