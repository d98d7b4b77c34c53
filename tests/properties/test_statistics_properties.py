"""Statistics forget nothing they promise to keep, however the data arrives."""

from __future__ import annotations

from copy import deepcopy
from random import Random

import numpy as np
import numpy.typing as npt
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from qtool.calib.statistics import BINS, TensorStatistics

# Wide enough for every normal number, and not so wide that the sum of squares leaves float64.
_FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
_USUAL = st.floats(min_value=-1e4, max_value=1e4, width=32)
_BATCH = st_numpy.arrays(np.float32, st.integers(1, 40), elements=_USUAL)
_BATCHES = st.lists(_BATCH, min_size=1, max_size=6)


def _seen(*batches: npt.NDArray[np.float32]) -> TensorStatistics:
    statistics = TensorStatistics()
    for batch in batches:
        assert statistics.add(batch, batch)
    return statistics


def _merged(*parts: TensorStatistics) -> TensorStatistics:
    total = TensorStatistics()
    for part in parts:
        total.merge(part)
    return total


def _assert_same(one: TensorStatistics, other: TensorStatistics) -> None:
    """All is equal, to the last bit of sums over batches."""
    assert (one.minimum, one.maximum, one.batches) == (other.minimum, other.maximum, other.batches)
    assert (one.values, one.infinite) == (other.values, other.infinite)
    assert np.array_equal(one.counts, other.counts)
    assert (one.extremes, one.extreme_sums) == (other.extremes, other.extreme_sums)


@given(_BATCHES)
def test_merging_equals_one_pass(batches: list[npt.NDArray[np.float32]]) -> None:
    _assert_same(_merged(*(_seen(batch) for batch in batches)), _seen(*batches))


@given(_BATCH, _BATCH)
def test_merging_is_commutative(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> None:
    one, other = _seen(first), _seen(second)
    _assert_same(_merged(one, other), _merged(other, one))


@given(_BATCH, _BATCH, _BATCH)
def test_merging_is_associative(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], c: npt.NDArray[np.float32]
) -> None:
    _assert_same(
        _merged(_merged(_seen(a), _seen(b)), _seen(c)),
        _merged(_seen(a), _merged(_seen(b), _seen(c))),
    )


@given(_BATCH, _BATCH)
def test_merging_leaves_the_other_as_it_was(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> None:
    total, other = _seen(first), _seen(second)
    before = deepcopy(other)
    total.merge(other)
    _assert_same(other, before)


@given(_BATCH)
def test_merging_with_nothing_changes_nothing(batch: npt.NDArray[np.float32]) -> None:
    _assert_same(_merged(TensorStatistics(), _seen(batch), TensorStatistics()), _seen(batch))


@given(_BATCHES, st.randoms(use_true_random=False))
def test_the_order_of_batches_does_not_matter(batches: list[npt.NDArray[np.float32]], random: Random) -> None:
    shuffled = list(batches)
    random.shuffle(shuffled)
    _assert_same(_seen(*shuffled), _seen(*batches))


@given(_BATCH, st.integers(1, 40))
def test_the_split_into_batches_changes_only_what_is_kept_by_batch(batch: npt.NDArray[np.float32], size: int) -> None:
    pieces = [batch[start : start + size] for start in range(0, len(batch), size)]
    split, whole = _seen(*pieces), _seen(batch)
    assert split.batches == len(pieces)
    assert (split.minimum, split.maximum, split.values) == (whole.minimum, whole.maximum, whole.values)
    assert np.array_equal(split.counts, whole.counts)


@given(_BATCHES)
def test_extremes_equal_those_of_numpy(batches: list[npt.NDArray[np.float32]]) -> None:
    together = np.concatenate(batches)
    statistics = _seen(*batches)
    assert statistics.minimum == together.min()
    assert statistics.maximum == together.max()
    assert statistics.values == together.size
    np.testing.assert_allclose(statistics.minimum_sum, sum(float(b.min()) for b in batches), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(statistics.maximum_sum, sum(float(b.max()) for b in batches), rtol=1e-12, atol=1e-9)


@given(st_numpy.arrays(np.float32, st.integers(1, 60), elements=_FINITE))
def test_the_histogram_holds_every_value_in_the_bin_that_covers_it(values: npt.NDArray[np.float32]) -> None:
    histogram = _seen(values).histogram()
    assert histogram.total == values.size
    assert (histogram.counts > 0).all()
    assert (histogram.low <= histogram.high).all()
    assert (histogram.high[:-1] <= histogram.low[1:]).all()
    # Walking through the sorted values, the counts say which bin each one is in.
    bins = np.repeat(np.arange(len(histogram.counts)), histogram.counts)
    ordered = np.sort(values).astype(np.float64)
    assert (histogram.low[bins] <= ordered).all()
    assert (ordered <= histogram.high[bins]).all()


@given(st_numpy.arrays(np.float32, st.integers(1, 60), elements=_FINITE))
def test_a_bin_is_never_wider_than_a_256th_of_its_values(values: npt.NDArray[np.float32]) -> None:
    histogram = _seen(values).histogram()
    magnitude = np.maximum(np.abs(histogram.low), np.abs(histogram.high))
    # Below the normal numbers of float32 the bins stop shrinking.
    allowed = np.maximum(magnitude / 256.0, float(np.finfo(np.float32).tiny))
    assert (histogram.high - histogram.low <= allowed).all()


@given(st_numpy.arrays(np.float32, st.integers(1, 60), elements=_FINITE))
def test_the_histogram_ends_at_the_exact_extremes(values: npt.NDArray[np.float32]) -> None:
    histogram = _seen(values).histogram()
    assert histogram.low[0] == float(values.min())
    assert histogram.high[-1] == float(values.max())


@given(st_numpy.arrays(np.float32, st.integers(1, 200), elements=_USUAL), st.floats(0.0, 1.0))
def test_quantiles_of_the_histogram_are_within_a_256th(values: npt.NDArray[np.float32], share: float) -> None:
    histogram = _seen(values).histogram()
    rank = min(int(share * values.size), values.size - 1)
    exact = float(np.sort(values)[rank])
    estimate = float(histogram.centers[np.searchsorted(np.cumsum(histogram.counts), rank, side="right")])
    assert abs(estimate - exact) <= abs(exact) / 256.0 + float(np.finfo(np.float32).tiny)


@given(_BATCH, st.integers(1, 5), st.integers(1, 5), st.sampled_from([np.inf, -np.inf]))
def test_infinities_are_counted_apart_from_everything_else(
    batch: npt.NDArray[np.float32], before: int, after: int, infinity: float
) -> None:
    spoilt = np.concatenate([np.full(before, infinity), batch, np.full(after, -infinity)]).astype(np.float32)
    statistics, clean = _seen(spoilt), _seen(batch)
    assert statistics.infinite == before + after
    statistics.infinite = 0
    _assert_same(statistics, clean)


@given(_BATCH, _BATCH, st.integers(0, 39))
def test_a_batch_with_a_nan_is_refused_whole(
    first: npt.NDArray[np.float32], second: npt.NDArray[np.float32], position: int
) -> None:
    statistics, before = _seen(first), _seen(first)
    spoilt = second.copy()
    spoilt[position % len(spoilt)] = np.nan
    assert not statistics.add(spoilt, spoilt)
    _assert_same(statistics, before)


@given(_BATCH)
def test_an_empty_batch_leaves_no_trace(batch: npt.NDArray[np.float32]) -> None:
    empty = np.zeros((0, 3), np.float32)
    _assert_same(_seen(batch, empty), _seen(batch))


@given(_BATCH)
def test_the_shape_of_a_batch_does_not_matter(batch: npt.NDArray[np.float32]) -> None:
    cube = np.stack([batch, batch[::-1]]).reshape(2, -1, 1).transpose(1, 2, 0)
    _assert_same(_seen(cube), _seen(np.concatenate([batch, batch])))


@given(st_numpy.arrays(np.float32, st.integers(1, 60), elements=_FINITE))
def test_mirrored_values_give_the_mirrored_histogram(values: npt.NDArray[np.float32]) -> None:
    # Zero has a bin of its own on each side of it.
    values = values[values != 0]
    assume(values.size > 0)
    one, mirrored = _seen(values), _seen(-values)
    assert (mirrored.minimum, mirrored.maximum) == (-one.maximum, -one.minimum)
    half = BINS // 2
    assert np.array_equal(np.roll(one.counts, half), mirrored.counts)
