"""``--calib-data`` given several times means all of these samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.calib.dataset import open_dataset
from qtool.calib.datasets.joined import JoinedData
from qtool.calib.errors import CalibError
from qtool.calib.specs import TensorSpec

_INPUT = (TensorSpec("x", np.dtype(np.float32), ("n", 2)),)


class _Numbers:
    """Gives samples that count up, in batches."""

    def __init__(self, first: int, count: int) -> None:
        self._first, self.count = first, count

    def specs(self) -> tuple[TensorSpec, ...]:
        return _INPUT

    def array(self, name: str) -> np.ndarray | None:
        return np.arange(self._first, self._first + self.count) if name == "_label" else None

    def feeds(self, inputs: Any, *, batch_size: int = 1, limit: Any = None, skip: int = 0, remark: Any = None) -> Any:
        rows = list(range(self._first, self._first + self.count))[skip:][:limit]
        assert rows
        return ({"x": np.array(rows[at : at + batch_size])} for at in range(0, len(rows), batch_size))


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    batch_size=st.integers(1, 3),
    skip=st.integers(0, 22),
    limit=st.one_of(st.none(), st.integers(1, 22)),
)
def test_samples_come_in_order_once_each(counts: list[int], batch_size: int, skip: int, limit: int | None) -> None:
    firsts = [sum(counts[:place]) for place in range(len(counts))]
    joined = JoinedData([_Numbers(first, count) for first, count in zip(firsts, counts, strict=True)])
    everything = list(range(sum(counts)))
    assert joined.count == len(everything)
    labels = joined.array("_label")
    assert labels is not None
    assert labels.tolist() == everything
    assert joined.array("other") is None
    wanted = everything[skip:][:limit]
    if not wanted:
        with pytest.raises(CalibError, match="no samples left"):
            joined.feeds(_INPUT, batch_size=batch_size, skip=skip, limit=limit)
        return
    feeds = list(joined.feeds(_INPUT, batch_size=batch_size, skip=skip, limit=limit))
    assert [row for feed in feeds for row in feed["x"]] == wanted
    assert all(len(feed["x"]) <= batch_size for feed in feeds)


def test_only_the_last_source_may_be_without_a_number_of_samples(tmp_path: Path) -> None:
    (tmp_path / "given.py").write_text("def samples():\n    yield {'x': [[1.0, 2.0]]}\n")
    np.savez(tmp_path / "x.npz", x=np.ones((3, 2), np.float32))
    function, file = open_dataset(f"{tmp_path / 'given.py'}:samples"), open_dataset(str(tmp_path / "x.npz"))
    assert JoinedData([file, function]).count is None
    with pytest.raises(CalibError, match="how many samples"):
        JoinedData([function, file])


@pytest.fixture
def network(save: Callable[..., Path], tmp_path: Path) -> Path:
    rng = np.random.default_rng(11)
    for name, size in (("small", 0.1), ("large", 10.0)):
        np.savez(tmp_path / f"{name}.npz", x=(size * rng.normal(size=(16, 8))).astype(np.float32))
    return save(
        "net.onnx",
        "g (float[n,8] x) => (float[n,4] y) { a = MatMul (x, w) b = Relu (a) y = MatMul (b, v) }",
        w=rng.normal(size=(8, 8)).astype(np.float32),
        v=rng.normal(size=(8, 4)).astype(np.float32),
    )


def test_ranges_come_from_all_sources(run: Any, network: Path, tmp_path: Path) -> None:
    both = np.concatenate([np.load(tmp_path / f"{name}.npz")["x"] for name in ("small", "large")])
    np.savez(tmp_path / "both.npz", x=both)
    options = ["--target", "x86-avx2", "--method", "minmax", "--effort", "fast", "--batch-size", "4"]
    for name, data in (("one", ["both"]), ("two", ["small", "large"]), ("less", ["small"])):
        given_data = [part for source in data for part in ("--calib-data", f"{source}.npz")]
        outcome = run("quantize", network, *given_data, *options, "-o", f"{name}.onnx", "--json")
        assert outcome.code == 0, outcome.err
    made = {name: (tmp_path / f"{name}.onnx").read_bytes() for name in ("one", "two", "less")}
    assert made["two"] == made["one"]
    assert made["two"] != made["less"]
    for command in (["calibrate", network, "-o", "stats.npz"], ["sensitivity", network]):
        outcome = run(*command, "--calib-data", "small.npz", "--calib-data", "large.npz", "--target", "x86-avx2")
        assert outcome.code == 0, outcome.err


def test_a_locked_run_wants_all_sources(run: Any, network: Path, tmp_path: Path) -> None:
    command = ["quantize", network, "--calib-data", "small.npz", "--calib-data", "large.npz", "--target", "x86-avx2"]
    outcome = run(*command, "-o", "q.onnx", "--json")
    assert outcome.code == 0, outcome.err
    manifest = outcome.json["manifest"]
    again = run("quantize", "--locked", manifest, "-o", "again.onnx", "--json")
    assert again.code == 0, again.err
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "q.onnx").read_bytes()
    less = run("quantize", "--locked", manifest, "--calib-data", "small.npz", "-o", "less.onnx")
    assert less.code == 2
    assert "is missing" in less.err
    more = run("quantize", "--locked", manifest, *("--calib-data", "small.npz") * 3, "-o", "more.onnx")
    assert more.code == 2
    assert "is new" in more.err
