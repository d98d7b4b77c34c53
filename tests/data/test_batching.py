"""Batches hold the same samples whatever way they are cut."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.calib.datasets.batching import Chunk, batches, fixed_batch_size, is_one_batch_axis, wanted, window_for
from qtool.calib.errors import CalibError
from qtool.calib.specs import Dim, TensorSpec

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=12)


def _inputs(*shape: Dim) -> list[TensorSpec]:
    return [TensorSpec("x", np.dtype(np.float32), shape)]


def _chunks(lengths: list[int]) -> Iterator[Chunk]:
    start = 0
    for length in lengths:
        yield Chunk(arrays={"x": np.arange(start, start + length)[:, None]}, rows=length)
        start += length


@given(lengths=LENGTHS, batch_size=st.integers(1, 9), skip=st.integers(0, 20), limit=st.none() | st.integers(1, 20))
def test_every_wanted_sample_comes_once_and_in_order(
    lengths: list[int], batch_size: int, skip: int, limit: int | None
) -> None:
    inputs = _inputs("n", 1)
    window = window_for(inputs, batch_size=batch_size, limit=limit, skip=skip, count=None, where="data")
    expected = list(range(sum(lengths)))[skip:][:limit]
    stream = batches(wanted(_chunks(lengths), window), window, where="data", remark=None)
    if not expected:
        with pytest.raises(CalibError, match="has no samples"):
            list(stream)
        return
    found = [batch["x"][:, 0].tolist() for batch in stream]
    assert [number for batch in found for number in batch] == expected
    assert all(len(batch) == batch_size for batch in found[:-1])
    assert len(found[-1]) <= batch_size


@given(lengths=LENGTHS, other=st.integers(1, 9), batch_size=st.integers(1, 9))
def test_batches_do_not_depend_on_how_the_data_is_split(lengths: list[int], other: int, batch_size: int) -> None:
    total = sum(lengths)
    regular = [min(other, total - first) for first in range(0, total, other)]
    window = window_for(_inputs("n", 1), batch_size=batch_size, limit=None, skip=0, count=total, where="data")
    one, two = (
        [batch["x"].tolist() for batch in batches(_chunks(split), window, where="data", remark=None)]
        for split in (lengths, regular)
    )
    assert one == two


@given(lengths=LENGTHS, fixed=st.integers(2, 6))
def test_a_fixed_batch_is_full_or_left_out(lengths: list[int], fixed: int) -> None:
    window = window_for(_inputs(fixed, 1), batch_size=1, limit=None, skip=0, count=None, where="data")
    remarks: list[str] = []
    stream = batches(_chunks(lengths), window, where="data", remark=remarks.append)
    if sum(lengths) < fixed:
        with pytest.raises(CalibError, match=f"{sum(lengths)} samples of data do not fill one batch"):
            list(stream)
        return
    found = [batch["x"][:, 0].tolist() for batch in stream]
    assert [number for batch in found for number in batch] == list(range(sum(lengths) // fixed * fixed))
    assert bool(remarks) == bool(sum(lengths) % fixed)


@given(widths=st.lists(st.integers(1, 3), min_size=1, max_size=15), batch_size=st.integers(1, 4))
def test_samples_of_different_shape_share_no_batch(widths: list[int], batch_size: int) -> None:
    chunks = (Chunk(arrays={"x": np.full((1, width), place)}, rows=1) for place, width in enumerate(widths))
    window = window_for(_inputs("n", "w"), batch_size=batch_size, limit=None, skip=0, count=None, where="data")
    found = list(batches(chunks, window, where="data", remark=None))
    assert [int(row[0]) for batch in found for row in batch["x"]] == list(range(len(widths)))
    assert [len(row) for batch in found for row in batch["x"]] == widths


def test_inputs_that_fix_their_first_axis_alike_fix_the_batch() -> None:
    assert fixed_batch_size(_inputs(4, 3)) == 4
    assert fixed_batch_size(_inputs("n", 3)) is None
    assert fixed_batch_size([*_inputs(4, 3), *_inputs("n", 3)]) is None


def test_inputs_with_first_axes_of_different_meaning_share_no_batch_axis() -> None:
    assert is_one_batch_axis([*_inputs("n", 3), *_inputs("n", 4)])
    assert not is_one_batch_axis([*_inputs("n", 3), *_inputs(2, 4)])
    assert not is_one_batch_axis([*_inputs("n", 3), *_inputs()])
