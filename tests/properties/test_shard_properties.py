"""Statistics of shards join to those of one pass, whatever the data, the split and the order."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from qtool.calib.collect import Collected, collect
from qtool.calib.datasets.array_file import ArrayFile
from qtool.calib.datasets.array_folder import ArrayFolder
from qtool.calib.datasets.base import Dataset
from qtool.calib.datasets.data_shard import DataShard, Seen
from qtool.calib.datasets.joined import JoinedData
from qtool.calib.exact_sums import ExactSums
from qtool.calib.shard import Shard
from qtool.calib.specs import Array, TensorSpec
from qtool.calib.statistics_file import StoredStatistics, write_statistics
from qtool.workflows.shards.merge_statistics import joined

_NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e150, max_value=1e150)
_TERMS = st_numpy.arrays(np.float64, st.tuples(st.integers(1, 12), st.just(3)), elements=_NUMBERS)
_VALUES = st.floats(width=32, min_value=-1e4, max_value=1e4) | st.sampled_from([np.inf, -np.inf, 3e38, 1e-45])


def _exact(terms: npt.NDArray[np.float64]) -> list[Fraction]:
    return [sum((Fraction(value) for value in column), Fraction()) for column in terms.T.tolist()]


def _value_of(sums: ExactSums) -> list[Fraction]:
    digits = sums.digits()
    units = [Fraction(2) ** (32 * place) for place in range(digits.lowest, digits.lowest + len(digits.values))]
    return [
        sum((int(d) * unit for d, unit in zip(column, units, strict=True)), Fraction()) for column in digits.values.T
    ]


@given(_TERMS)
def test_sums_are_those_of_fractions(terms: npt.NDArray[np.float64]) -> None:
    sums = ExactSums(3)
    sums.add(terms)
    assert _value_of(sums) == _exact(terms)
    for rounded, exact in zip(sums.rounded(), _exact(terms), strict=True):
        assert abs(Fraction(float(rounded)) - exact) <= abs(exact) * Fraction(2) ** -50


@given(_TERMS, st.randoms(use_true_random=False))
def test_sums_come_back_from_their_digits_in_any_order(terms: npt.NDArray[np.float64], random: Random) -> None:
    whole, parts = ExactSums(3), ExactSums(3)
    whole.add(terms)
    rows = list(terms)
    random.shuffle(rows)
    for row in rows:
        parts.merge(ExactSums.from_digits(ExactSums.of(row).digits()))
    assert parts == whole
    assert np.array_equal(parts.rounded(), whole.rounded())


def test_a_million_terms_do_not_overflow() -> None:
    sums = ExactSums(2)
    block = np.tile(np.array([[2.0**32 - 1, -(2.0**53 - 1)]]), (1000, 1))
    for _ in range(1000):
        sums.add(block)
    assert _value_of(sums) == [Fraction(1_000_000 * (2**32 - 1)), Fraction(-1_000_000 * (2**53 - 1))]


class _Model:
    """Returns its input, and a tensor whose last axis is as long as the input's first value says."""

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        x = feeds["x"]
        first = float(x.flat[0])
        return {"x": x, "ragged": np.repeat(x[:, :1], 2 if first > 0 else 3, axis=1)}


def _collected(feeds: Sequence[Array]) -> StoredStatistics:
    seen = Seen()
    for number, feed in feeds:
        seen.add(number, {"x": feed})
    collected: Collected = collect(
        _Model(),
        ({"x": feed} for _, feed in feeds),
        ["x", "ragged"],
        channel_axes={"x": 1, "ragged": 1},
        may_be_empty=True,
    )
    return StoredStatistics(collected=collected, origin={"seen": str(seen)})


_BATCHES = st.lists(
    st_numpy.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(4)), elements=_VALUES), min_size=1, max_size=8
)


def _bytes(stored: StoredStatistics) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npz"
        write_statistics(path, stored.collected, stored.origin)
        return path.read_bytes()


@settings(max_examples=50)
@given(_BATCHES, st.lists(st.integers(0, 3), min_size=8, max_size=8), st.permutations(range(4)))
def test_any_split_in_any_order_is_one_pass(
    batches: list[npt.NDArray[np.float32]], owners: list[int], order: list[int]
) -> None:
    numbered = list(enumerate(batches))
    parts = [_collected([item for item in numbered if owners[item[0]] == owner]) for owner in range(4)]
    merged = parts[order[0]]
    for place in order[1:]:
        merged = joined(merged, parts[place])
    assert _bytes(merged) == _bytes(_collected(numbered))


def _batches_of(dataset: Dataset, spec: TensorSpec, size: int, limit: int | None) -> Iterator[bytes]:
    for feed in dataset.feeds([spec], batch_size=size, limit=limit):
        yield f"{feed['x'].shape}".encode() + feed["x"].tobytes()


@settings(max_examples=60)
@given(
    st.lists(st.integers(2, 9), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 5),
    st.none() | st.integers(1, 12),
    st.sampled_from([("rows", "file"), ("rows", "folder"), ("fixed", "file"), ("fixed", "folder"), ("whole", "file")]),
)
def test_shards_of_files_folders_and_several_sources_are_the_batches_of_all(
    lengths: list[int], size: int, count: int, limit: int | None, kind_of_data: tuple[str, str]
) -> None:
    form, kind = kind_of_data
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / f"{number}.npz" for number in range(len(lengths))]
        for number, (path, length) in enumerate(zip(files, lengths, strict=True)):
            np.savez(path, x=(np.arange(length * 2, dtype=np.float32) + 100 * number).reshape(length, 2))
        sources: list[Dataset] = [ArrayFile(path) for path in files]
        dataset = sources[0] if len(sources) == 1 else JoinedData(sources)
        if kind == "folder":
            dataset = ArrayFolder(Path(name), files)
        # In the form "whole" a row is all of an input of one axis, whose length the model fixes.
        shape = {"rows": ("n", 2), "fixed": (2, 2), "whole": (2,)}[form]
        size = 1 if form != "rows" else size
        limit = None if form == "fixed" else limit
        spec = TensorSpec("x", np.dtype(np.float32), shape)
        everything = list(_batches_of(dataset, spec, size, limit))
        found: dict[int, bytes] = {}
        seen = Seen()
        for number in range(1, count + 1):
            shard = DataShard(dataset, Shard(number, count))
            given_ = list(_batches_of(shard, spec, size, limit))
            found.update(zip(shard.numbers, given_, strict=False))
            seen.merge(shard.seen)
            assert shard.samples is None or len(given_) == -(-shard.samples // shard.batch_size)
        assert [found[number] for number in sorted(found)] == everything
        whole = DataShard(dataset)
        assert len(list(_batches_of(whole, spec, size, limit))) == len(everything)
        assert str(whole.seen) == str(seen)
