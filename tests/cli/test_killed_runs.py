"""What a killed run leaves goes with the next one, and nothing else does."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from typer.testing import CliRunner

from qtool.cli.app import app

_WRITER = """
import sys, time
from pathlib import Path
from qtool.atomic import staged
from qtool.private_folder import private_folder
with staged(Path(sys.argv[1])) as path, private_folder() as folder:
    path.write_bytes(b"half a model")
    (folder / "weights").write_bytes(b"half of them")
    print("writing", flush=True)
    time.sleep(600)
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The folder that results go to, empty."""
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def write(results: Path, temporary: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts processes that are in the middle of writing a result."""
    writers: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        place = str(results / "model.onnx")
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, place], stdout=subprocess.PIPE, text=True)
        writers.append(writer)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        return writer

    yield start
    for writer in writers:
        writer.kill()
        writer.communicate()


@pytest.fixture
def run(tmp_path: Path, results: Path) -> Callable[[], None]:
    """Runs a command that writes another result to the same folder."""
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[batch,4] x) => (float[batch,2] y) {y = MatMul (x, w)}'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, 2, dtype=np.float32), "w"))
    onnx.save(proto, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32))

    def command() -> None:
        words = ["calibrate", tmp_path / "net.onnx", "--calib-data", tmp_path / "data.npz"]
        words += ["-o", results / "statistics.npz", "--force"]
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output

    return command


def _left_in(folder: Path) -> set[Path]:
    return {path for path in folder.iterdir() if path.is_dir()}


def test_the_next_run_sweeps_what_killed_runs_left(
    write: Callable[[], subprocess.Popen[str]], run: Callable[[], None], results: Path, temporary: Path
) -> None:
    killed = [write(), write()]
    assert len(_left_in(results)) == len(_left_in(temporary)) == 2
    for writer in killed:
        writer.kill()
        writer.wait()
    assert len(_left_in(results)) == len(_left_in(temporary)) == 2
    run()
    assert _left_in(results) == _left_in(temporary) == set()


def test_folders_of_running_processes_stay(
    write: Callable[[], subprocess.Popen[str]], run: Callable[[], None], results: Path, temporary: Path
) -> None:
    write()
    living = _left_in(results), _left_in(temporary)
    killed = write()
    killed.kill()
    killed.wait()
    run()
    assert (_left_in(results), _left_in(temporary)) == living
    (folder,) = living[0]
    assert (folder / "model.onnx").read_bytes() == b"half a model"


def test_what_others_made_stays(run: Callable[[], None], results: Path, tmp_path: Path) -> None:
    kept = [results / name for name in (".model.onnx.previous", ".statistics.npz.12345678", ".qtool", "parts")]
    for folder in kept:
        folder.mkdir()
        (folder / "notes").write_text("mine", encoding="utf-8")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "notes").write_text("mine", encoding="utf-8")
    (results / ".qtool-writing-link").symlink_to(outside)
    run()
    for folder in (*kept, outside):
        assert (folder / "notes").read_text(encoding="utf-8") == "mine"


def test_a_name_may_be_as_long_as_the_system_allows(run: Callable[[], None], results: Path, tmp_path: Path) -> None:
    place = results / ("n" * 246 + ".npz")
    words = ["calibrate", tmp_path / "net.onnx", "--calib-data", tmp_path / "data.npz", "-o", place]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert place.is_file()
    assert _left_in(results) == set()
