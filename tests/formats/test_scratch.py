"""Arrays that are kept in temporary files."""

from pathlib import Path

import numpy as np
import pytest

from qtool.formats.scratch import Scratch, kept_aside


@pytest.mark.parametrize("segment_bytes", [100, 1000, 1 << 20])
def test_arrays_come_back_as_they_were(tmp_path: Path, segment_bytes: int) -> None:
    scratch, random = Scratch(tmp_path, segment_bytes=segment_bytes), np.random.default_rng(0)
    arrays = [random.standard_normal((place, 7)).astype(np.float32) for place in (1, 30, 2, 0, 11)]
    arrays += [random.integers(0, 9, (3, 4, 5)).astype(np.int8).transpose(2, 0, 1)]
    kept = [scratch.keep(array) for array in arrays]
    for array, found in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(found, array)
        assert (found.dtype, found.shape, found.flags.writeable) == (array.dtype, array.shape, False)
    del scratch
    np.testing.assert_array_equal(kept[1], arrays[1])
    assert not list(tmp_path.iterdir())


def test_only_large_arrays_leave_the_memory() -> None:
    small, large = np.zeros(10), np.arange(1 << 18)
    assert kept_aside(small) is small
    found = kept_aside(large)
    assert not found.flags.writeable
    np.testing.assert_array_equal(found, large)
