"""Batches and what is held follow the size of activations, and searches end in time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper, parser
from typer.testing import CliRunner

from qtool.cli.app import app
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Session, Watcher
from qtool.search.correction_ablation import CorrectionAblation
from qtool.workflows.tune.activation_memory import ActivationMemory
from qtool.workflows.tune.search_time import SearchTime

_WIDE = """
<ir_version: 8, opset_import: ["" : 17]>
wide (float[n, 1, h, w] x) => (float[n, c] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    b = Relu (a)
    d = Conv <pads = [1, 1, 1, 1]> (b, w2)
    s = Add (b, d)
    p = GlobalAveragePool (s)
    y = Flatten (p)
}
"""


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A network of a few hundred weights, whose tensors have 16 times as many values as its input."""
    proto = parser.parse_model(_WIDE)
    generator = np.random.default_rng(0)
    for name, shape in (("w1", (16, 1, 3, 3)), ("w2", (16, 16, 3, 3))):
        proto.graph.initializer.append(numpy_helper.from_array(generator.normal(0, 0.2, shape).astype("f"), name))
    path = tmp_path / "wide.onnx"
    onnx.save(proto, path)
    return path


def test_the_bytes_of_activations_are_those_of_a_run(wide: Path) -> None:
    model = ir.load(wide)
    feed = {"x": np.zeros((3, 1, 20, 30), np.float32)}
    memory = ActivationMemory.of(model, feed)
    names = ("a", "b", "d", "s", "p", "y")
    with watching(model, names) as graph, open_graph(graph) as session:
        sizes = {name: value.nbytes // 3 for name, value in Watcher(session).run(feed).items()}
    assert memory.all_bytes == sum(sizes[name] for name in names)
    assert memory.output_bytes == sizes["y"]
    # Behind the second convolution, its output and the other summand are read.
    assert memory.crossing_bytes == sizes["b"] + sizes["d"]


def test_what_cannot_be_told_counts_as_nothing() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (int64[1, k] y) { y = NonZero (x) }'
    )
    memory = ActivationMemory.of(model, {"x": np.ones(4, np.float32)})
    assert (memory.all_bytes, memory.crossing_bytes) == (0, 4)
    assert memory.batch_size(4) == 4


@given(st.integers(0, 1 << 34), st.integers(0, 1 << 34), st.integers(1, 64), st.integers(1, 2))
def test_batches_and_held_samples_shrink_with_activations(one: int, other: int, wanted: int, graphs: int) -> None:
    small, large = sorted((one, other))
    less, more = (ActivationMemory(all_bytes=n, crossing_bytes=n, output_bytes=n) for n in (small, large))
    for count in (
        lambda memory: memory.batch_size(wanted),
        lambda memory: memory.held_samples(wanted, graphs=graphs),
        lambda memory: memory.evaluation_samples(wanted),
    ):
        assert 1 <= count(more) <= count(less) <= wanted
        # A sample has to go through whatever it takes; several take no more than some hundred MB.
        assert count(more) == 1 or count(more) * large <= 400 << 20


def test_large_samples_go_through_one_at_a_time(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    for name in ("run", "run_uncopied"):
        plain = getattr(Session, name)

        def run(self: Session, feeds: Any, *rest: Any, plain: Any = plain) -> Any:
            seen.update(array.shape[0] for array in feeds.values() if array.ndim == 4)
            return plain(self, feeds, *rest)

        monkeypatch.setattr(Session, name, run)
    monkeypatch.setattr("qtool.workflows.tune.activation_memory._LARGEST_RUN_BYTES", 1 << 20)
    for side, largest in ((12, 4), (96, 1)):
        data = tmp_path / "data.npz"
        np.savez(data, x=np.random.default_rng(1).normal(size=(13, 1, side, side)).astype(np.float32))
        for command in ("quantize", "calibrate", "sensitivity"):
            seen.clear()
            words = [command, str(wide), "--calib-data", str(data), "-o", str(tmp_path / f"{command}.json"), "--force"]
            if command == "quantize":
                words[-2] = str(tmp_path / "int8.onnx")
                words += ["--target", "x86-vnni", "--effort", "balanced", "--smallest"]
            elif command == "calibrate":
                words[-2] = str(tmp_path / "statistics.npz")
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, result.output
            assert max(seen) == largest, command


class _Clock:
    """Goes on by what it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_search_ends_before_ten_times_the_float_model_and_a_minute() -> None:
    clock, other = _Clock(), _Clock()
    search_time = SearchTime([clock, other])
    clock.now = other.now = 1e9
    assert not search_time.is_over()
    assert math.isinf(search_time.left_s)
    clock.now = 0.0
    search_time.limit(plain_s=10.0)
    clock.now, other.now = 100.0, 1e9
    assert not search_time.is_over()
    assert search_time.stopped is None
    clock.now = 10.0 * 10.0 + 60.0
    assert search_time.is_over()
    assert search_time.left_s == 0.0
    assert search_time.stopped == "the search was ended after 125 s"


def test_a_search_whose_time_is_up_still_gives_a_model(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qtool.workflows.tune.search_time._FIXED_S", 0.0)
    monkeypatch.setattr("qtool.workflows.tune.search_time._TIMES_PLAIN", 0.0)
    data, output = tmp_path / "data.npz", tmp_path / "int8.onnx"
    np.savez(data, x=np.random.default_rng(1).normal(size=(13, 1, 12, 12)).astype(np.float32))
    words = ["quantize", str(wide), "--calib-data", str(data), "-o", str(output), "--smallest"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "the search was ended after 0 s: continuing with the best so far" in result.stderr
    operators = {node.op_type for node in onnx.load(output).graph.node}
    assert "QuantizeLinear" in operators
    manifest = output.with_name("int8.manifest.json")
    assert json.loads(manifest.read_text(encoding="utf-8"))["lock"]["search_ended"] == "the search was ended after 0 s"
    monkeypatch.undo()
    with_all_the_time = CliRunner().invoke(app, [*words, "--effort", "best", "--force"])
    assert "the search was ended" not in with_all_the_time.stderr


def test_a_lock_says_that_time_decided(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, output = tmp_path / "data.npz", tmp_path / "int8.onnx"
    np.savez(data, x=np.random.default_rng(1).normal(size=(13, 1, 12, 12)).astype(np.float32))
    with monkeypatch.context() as patch:
        patch.setattr("qtool.workflows.tune.search_time._FIXED_S", 0.0)
        patch.setattr("qtool.workflows.tune.search_time._TIMES_PLAIN", 0.0)
        words = ["quantize", str(wide), "--calib-data", str(data), "-o", str(output), "--smallest"]
        assert CliRunner().invoke(app, words).exit_code == 0
    before = output.read_bytes()
    repeated = CliRunner().invoke(app, ["quantize", "--locked", str(output.with_name("int8.manifest.json")), "--force"])
    assert repeated.exit_code == 2, repeated.output
    assert "the search of the manifest was ended after 0 s" in " ".join(repeated.stderr.split())
    assert output.read_bytes() == before


def test_corrections_that_there_is_no_time_for_are_neither_tried_nor_told() -> None:
    class Evaluator:
        def sqnr_db(self, model: Any) -> float:
            return float(len(model))

    class Candidates:
        def __init__(self, made: frozenset[str] = frozenset()) -> None:
            self.made = made
            self.model = made

        def __call__(self, kept_float: Any) -> Any:
            return self

    ablation = CorrectionAblation(cast(Any, Evaluator()))
    tried: list[int] = []
    corrections = {name: lambda candidates, name=name: Candidates(candidates.made | {name}) for name in "ab"}
    found = ablation.best(cast(Any, Candidates()), cast(Any, corrections), advance=tried.append, stop=lambda: True)
    assert found.made == {"a", "b"}
    assert tried == [1]
    assert ablation.gains == []
