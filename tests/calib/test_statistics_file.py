"""A statistics file gives back what was written, and refuses everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from qtool.calib.collect import Collected, collect
from qtool.calib.errors import CalibError
from qtool.calib.grid import Grid
from qtool.calib.ranges import RANGE_METHODS, range_method_class
from qtool.calib.specs import Array
from qtool.calib.statistics import TensorStatistics
from qtool.calib.statistics_file import read_statistics, write_statistics

_GRID = Grid(bits=8, signed=False, symmetric=False)


class _Model:
    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        x = feeds["x"]
        return {"a/b:0": x, "relu": np.maximum(x, 0)}


@pytest.fixture
def collected() -> Collected:
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(0.0, 2.0, (3, 4, 50)).astype(np.float32)} for _ in range(5)]
    return collect(_Model(), feeds, ["a/b:0", "relu", "never"], channel_axes={"a/b:0": 1})


@pytest.fixture
def stored(collected: Collected, tmp_path: Path) -> Path:
    path = tmp_path / "stats.npz"
    write_statistics(path, collected, {"model": "net.onnx", "data": "photos"})
    return path


def test_everything_comes_back_exactly(collected: Collected, stored: Path) -> None:
    back = read_statistics(stored)
    assert dict(back.origin) == {"model": "net.onnx", "data": "photos"}
    assert (back.collected.samples, back.collected.batches) == (collected.samples, collected.batches) == (15, 5)
    assert list(back.collected.statistics) == list(collected.statistics)
    for name, seen in collected.statistics.items():
        for field in fields(TensorStatistics):
            one, other = getattr(seen, field.name), getattr(back.collected.statistics[name], field.name)
            assert np.array_equal(one, other), (name, field.name)
            assert type(one) is type(other), (name, field.name)
    assert back.collected.unreached == ("never",)


@pytest.mark.parametrize("method", sorted(RANGE_METHODS))
def test_every_range_method_works_from_the_file(collected: Collected, stored: Path, method: str) -> None:
    back = read_statistics(stored).collected
    for name in ("a/b:0", "relu"):
        span = range_method_class(method)().span(collected.statistics[name], _GRID)
        assert range_method_class(method)().span(back.statistics[name], _GRID) == span


def test_the_same_statistics_give_the_same_bytes(collected: Collected, stored: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.npz"
    write_statistics(again, collected, {"data": "photos", "model": "net.onnx"})
    assert again.read_bytes() == stored.read_bytes()


def test_the_file_is_small(stored: Path) -> None:
    assert stored.stat().st_size < 50_000


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CalibError, match="does not exist") as caught:
        read_statistics(tmp_path / "none.npz")
    assert "calibrate" in caught.value.fix


@pytest.mark.parametrize("keep", [0, 1, 10, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_an_error(stored: Path, keep: float) -> None:
    whole = stored.read_bytes()
    stored.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(CalibError, match="not a complete statistics file"):
        read_statistics(stored)


def test_a_file_of_something_else_is_an_error(tmp_path: Path) -> None:
    text = tmp_path / "text.npz"
    text.write_text("hello")
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, x=np.zeros(3))
    array = tmp_path / "array.npy"
    np.save(array, np.zeros(3))
    for path in (text, arrays, array):
        with pytest.raises(CalibError, match="not a complete statistics file"):
            read_statistics(path)


def test_an_altered_file_is_an_error(stored: Path, tmp_path: Path) -> None:
    with np.load(stored) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name in ("bins", "counts", "digits"):
        path = tmp_path / "altered.npz"
        np.savez(path, **{**arrays, name: arrays[name][:-1]})
        with pytest.raises(CalibError, match="not a complete statistics file"):
            read_statistics(path)


def test_a_later_version_is_an_error_that_says_so(stored: Path, tmp_path: Path) -> None:
    with np.load(stored) as archive:
        arrays = {name: archive[name] for name in archive.files}
    header = arrays["header"].tobytes().replace(b'"version": 2', b'"version": 3')
    path = tmp_path / "later.npz"
    np.savez(path, **{**arrays, "header": np.frombuffer(header, np.uint8)})
    with pytest.raises(CalibError, match="version 3"):
        read_statistics(path)


def test_pickled_content_is_never_executed(tmp_path: Path) -> None:
    path = tmp_path / "evil.npz"
    np.savez(path, header=np.array([{"format": "qtool.statistics"}], dtype=object))
    with pytest.raises(CalibError, match="not a complete statistics file"):
        read_statistics(path)
