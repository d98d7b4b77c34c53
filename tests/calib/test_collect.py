"""One streaming pass sees every value, once, whatever the batches."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.calib.collect import COUNTED_VALUES, Collected, collect
from qtool.calib.errors import CalibError
from qtool.calib.specs import Array, Feed
from qtool.calib.statistics import TensorStatistics

_AXES = {"doubled": 1, "row": -1}


class _Doubler:
    """A model of two tensors: twice its input, and the first row of each sample."""

    def __init__(self) -> None:
        self.batches = 0

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        self.batches += 1
        x = feeds["x"]
        return {"doubled": x * np.float32(2.0), "row": x[:, 0]}


def _samples(count: int = 12, *, rows: int = 3, columns: int = 5) -> Array:
    return np.random.default_rng(4).normal(0.5, 1.0, (count, rows, columns)).astype(np.float32)


def _batches(samples: Array, size: int) -> list[Feed]:
    return [{"x": samples[start : start + size]} for start in range(0, len(samples), size)]


def _collect(feeds: list[Feed], *, exact: bool = True) -> Collected:
    return collect(_Doubler(), feeds, ["doubled", "row"], channel_axes=_AXES, exact=exact)


def test_the_statistics_equal_those_of_numpy() -> None:
    samples = _samples()
    seen = _collect(_batches(samples, 4)).statistics
    doubled = samples * np.float32(2.0)
    assert (seen["doubled"].minimum, seen["doubled"].maximum) == (doubled.min(), doubled.max())
    assert seen["doubled"].values == doubled.size
    assert seen["doubled"].histogram().total == doubled.size
    assert (seen["row"].minimum, seen["row"].maximum) == (samples[:, 0].min(), samples[:, 0].max())


def test_channel_means_equal_those_of_numpy() -> None:
    samples = _samples()
    seen = _collect(_batches(samples, 5)).statistics
    means = seen["doubled"].channel_means
    assert means is not None
    np.testing.assert_allclose(means, 2.0 * samples.astype(np.float64).mean(axis=(0, 2)), rtol=1e-5, atol=1e-7)
    means = seen["row"].channel_means
    assert means is not None
    np.testing.assert_allclose(means, samples[:, 0].astype(np.float64).mean(axis=0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [1, 5, 12])
def test_the_split_into_batches_changes_nothing_that_is_counted(size: int) -> None:
    samples = _samples()
    one, other = _collect(_batches(samples, 4)), _collect(_batches(samples, size))
    assert one.samples == other.samples == 12
    for name in ("doubled", "row"):
        left, right = one.statistics[name], other.statistics[name]
        assert np.array_equal(left.counts, right.counts)
        assert (left.minimum, left.maximum, left.values) == (right.minimum, right.maximum, right.values)
        assert left.channel_means is not None
        assert right.channel_means is not None
        np.testing.assert_allclose(left.channel_means, right.channel_means, rtol=1e-5)


def test_samples_may_differ_in_length() -> None:
    rng = np.random.default_rng(1)
    feeds: list[Feed] = [{"x": rng.normal(0, 1, (2, 3, length)).astype(np.float32)} for length in (4, 9, 1)]
    collected = _collect(feeds)
    assert collected.samples == 6
    assert collected.statistics["doubled"].values == 2 * 3 * (4 + 9 + 1)
    assert collected.statistics["doubled"].channel_means is not None
    # The last axis differs from batch to batch: it has no channels.
    assert collected.statistics["row"].channel_means is None


def test_samples_and_batches_are_counted_and_reported_on_the_way() -> None:
    advances: list[int] = []
    runner = _Doubler()
    collected = collect(runner, _batches(_samples(), 5), ["doubled", "row"], advance=advances.append)
    assert (collected.samples, collected.batches) == (12, 3)
    assert advances == [5, 5, 2]
    assert runner.batches == 3


def test_a_large_tensor_is_sampled_evenly_but_its_extremes_are_exact() -> None:
    samples = np.random.default_rng(3).normal(0.0, 1.0, (2, 1, 40 * COUNTED_VALUES)).astype(np.float32)
    samples[1, 0, 12345] = 77.0
    samples[0, 0, -2] = -88.0
    sampled = _collect(_batches(samples, 1), exact=False).statistics["doubled"]
    assert (sampled.minimum, sampled.maximum) == (-176.0, 154.0)
    assert sampled.values == samples.size
    assert 0.5 * COUNTED_VALUES <= sampled.histogram().total / 2 <= 1.1 * COUNTED_VALUES
    exact = _collect(_batches(samples, 1), exact=True).statistics["doubled"]
    assert exact.histogram().total == samples.size


def test_sampling_sees_every_channel_of_a_channels_last_tensor() -> None:
    # 64 channels, each a constant of its own: an even step would meet a few of them only.
    values = np.tile(np.arange(1, 65, dtype=np.float32), 64 * 64).reshape(1, 1, -1)
    assert values.size > COUNTED_VALUES
    seen = _collect([{"x": values}], exact=False).statistics["doubled"].histogram()
    assert len(seen.counts) == 64
    assert seen.counts.max() <= 1.2 * seen.counts.min()


def test_a_tensor_that_was_never_reached_is_named() -> None:
    class Silent:
        def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
            return {"seen": feeds["x"], "empty": np.zeros((0, 3), np.float32)}

    collected = collect(Silent(), _batches(_samples(), 4), ["seen", "empty"])
    assert collected.unreached == ("empty",)


def test_nan_is_an_error_that_names_the_tensor_and_the_batch() -> None:
    samples = _samples()
    samples[9, 0, 0] = np.nan
    with pytest.raises(CalibError, match="'doubled' is NaN for batch 2") as caught:
        _collect(_batches(samples, 4))
    assert caught.value.fix


@pytest.mark.parametrize("axis", [0, 1, 2, -1, None])
@given(spoilt=st.sets(st.integers(0, 11), max_size=8), size=st.integers(1, 5))
def test_rows_of_nan_that_no_output_depends_on_leave_no_trace(axis: int | None, spoilt: set[int], size: int) -> None:
    """Rows are left out of a tensor as if they had not been there, down to the means of its channels."""

    class Padded:
        def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
            return {"seen": feeds["x"], "out": np.nan_to_num(feeds["x"])}

    samples = np.moveaxis(_samples(), 0, 1)  # (rows, samples, columns): padding may lie on any axis
    padded = samples.copy()
    padded[:, sorted(spoilt)] = np.nan
    kept = np.delete(samples, sorted(spoilt), axis=1)
    axes = {} if axis is None or axis == 1 else {"seen": axis}

    def seen_of(values: Array) -> TensorStatistics:
        feeds = [{"x": values[:, start : start + size]} for start in range(0, values.shape[1], size)]
        found = collect(Padded(), feeds, ["seen"], channel_axes=axes, exact=True, outputs=["out"])
        return found.statistics["seen"]

    found, expected = seen_of(padded), seen_of(kept)
    assert (found.minimum, found.maximum, found.values) == (expected.minimum, expected.maximum, expected.values)
    assert np.array_equal(found.counts, expected.counts)
    if axes:
        assert found.channel_means is not None
        assert expected.channel_means is not None
        np.testing.assert_allclose(found.channel_means, expected.channel_means, rtol=1e-5, atol=1e-7)


def test_nan_that_reaches_an_output_counts_the_batches_that_were_left_out() -> None:
    class Plain:
        def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
            return {"seen": feeds["x"], "out": feeds["x"]}

    samples = _samples()
    samples[9] = np.nan
    with pytest.raises(CalibError, match="'seen' is NaN for batch 7"):
        collect(Plain(), _batches(samples, 4), ["seen"], outputs=["out"], numbers=[3, 5, 7])


def test_infinities_are_counted_and_left_out() -> None:
    samples = _samples()
    samples[9, 1, 0] = np.inf
    seen = _collect(_batches(samples, 4)).statistics["doubled"]
    assert seen.infinite == 1
    assert np.isfinite(seen.maximum)


def test_no_data_is_an_error() -> None:
    with pytest.raises(CalibError, match="no samples") as caught:
        _collect([])
    assert caught.value.fix


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    def stream(count: int) -> Iterator[Feed]:
        rng = np.random.default_rng(0)
        for _ in range(count):
            yield {"x": rng.normal(0, 1, (1, 3, 20_000)).astype(np.float32)}

    def peak(count: int) -> int:
        tracemalloc.start()
        collect(_Doubler(), stream(count), ["doubled", "row"], channel_axes=_AXES)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(2)
    assert peak(40) <= 1.1 * peak(4)


class _Watched:
    """A model whose input is observed as it is, in the memory that the next batch goes into."""

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"x": feeds["x"]}


def test_batches_counted_beside_the_next_run_may_share_memory_with_it() -> None:
    # Large enough for another thread, and for extremes block by block.
    samples = np.random.default_rng(5).normal(0.0, 1.0, (6, 3, 60_000)).astype(np.float32)
    held = np.empty((1, 3, 60_000), np.float32)

    def feeds() -> Iterator[Feed]:
        for sample in samples:
            held[0] = sample
            yield {"x": held}

    seen = collect(_Watched(), feeds(), ["x"], exact=True).statistics["x"]
    assert (seen.minimum, seen.maximum) == (samples.min(), samples.max())
    assert seen.minimum_sum == sum(float(sample.min()) for sample in samples)
    assert seen.histogram().total == samples.size


def test_the_first_batch_with_nan_is_named_whatever_runs_beside_it() -> None:
    samples = np.zeros((3, 1, 300_000), np.float32)
    samples[1:, 0, 7] = np.nan

    class Broken(_Watched):
        def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
            if np.isnan(feeds["x"]).any() and self.seen:
                raise AssertionError("the run after that of the broken batch failed as well")
            self.seen = bool(np.isnan(feeds["x"]).any())
            return super().run(feeds)

        seen = False

    with pytest.raises(CalibError, match="NaN for batch 1"):
        collect(Broken(), _batches(samples, 1), ["x"])
