"""Logs, narrow and colourless terminals, and completion in the shell."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from typer.testing import CliRunner

from qtool.backends.coverage import Coverage, NodeCoverage
from qtool.cli.app import COMMANDS, app
from qtool.cli.console import Console
from qtool.cli.output.quantize import show_coverage

_COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]")
Invoke = Callable[..., Any]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs qtool in a folder with a small model and data for it."""
    monkeypatch.chdir(tmp_path)
    text = "net (float[n,6] x) => (float[n,4] y) { y = Gemm <transB = 1> (x, w, b) }"
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    generator = np.random.default_rng(0)
    for name, shape in (("w", (4, 6)), ("b", (4,))):
        array = generator.normal(0, 1, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, "net.onnx")
    np.savez("d.npz", x=generator.normal(0, 1, (16, 6)).astype(np.float32))
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_verbose_and_a_log_file(command: str) -> None:
    result = CliRunner().invoke(app, [command.replace("_", "-"), "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "--verbose" in result.stdout
    assert "--log-file" in result.stdout
    assert "--quiet" in result.stdout


def test_a_log_file_holds_steps_results_and_errors(invoke: Invoke) -> None:
    options = ("--calib-data", "d.npz", "--effort", "fast", "--smallest", "--log-file", "run.log", "-q")
    result = invoke("quantize", "net.onnx", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    lines = Path("run.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d (INFO|WARNING|ERROR) ", line) for line in lines)
    text = "\n".join(lines)
    assert "quantize" in lines[0]
    assert re.search(r"calibrating: \d+ in \d+\.\d s", text)
    assert "checking the result in onnxruntime" in text
    assert "Gemm | 1 | 1" in text
    assert invoke("quantize", "net.onnx", *options).exit_code == 2
    appended = Path("run.log").read_text().splitlines()
    assert appended[: len(lines)] == lines
    assert "ERROR the output net.int8.onnx exists already" in appended[-1]


def test_nobody_listens_when_the_command_is_over(invoke: Invoke) -> None:
    before = [list(logging.getLogger(name).handlers) for name in ("qtool", "qtool.steps")]
    assert invoke("verify", "net.onnx", "-v", "--log-file", "run.log").exit_code == 0
    assert [list(logging.getLogger(name).handlers) for name in ("qtool", "qtool.steps")] == before
    size = Path("run.log").stat().st_size
    assert invoke("verify", "net.onnx").exit_code == 0
    assert Path("run.log").stat().st_size == size


def test_verbose_tells_steps_on_stderr(invoke: Invoke) -> None:
    arguments = ("quantize", "net.onnx", "--calib-data", "d.npz", "--effort", "fast", "--dry-run", "--json", "-v")
    json.loads(invoke(*arguments).stdout)
    arguments = ("quantize", "net.onnx", "--calib-data", "d.npz", "--effort", "fast", "--json", "--force")
    assert "calibrating:" not in invoke(*arguments).stderr
    result = invoke(*arguments, "-v")
    assert re.search(r"^calibrating: \d+ in \d+\.\d s$", result.stderr, re.MULTILINE)
    assert json.loads(result.stdout)["output"] == "net.int8.onnx"


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (("verify", "net.int8.onnx"), ("reading the model", "opening it in onnxruntime")),
        (("diff", "net.onnx", "net.int8.onnx"), ("reading the models: 2", "comparing: 6")),
        (("explain", "net.int8.onnx", "node"), ("reading the model", "opening it in onnxruntime")),
        (("dequantize", "net.int8.onnx"), ("writing net.float.onnx", "comparing")),
    ],
)
def test_what_takes_long_with_a_large_model_tells_its_steps(
    invoke: Invoke, arguments: tuple[str, ...], steps: tuple[str, ...]
) -> None:
    assert invoke("quantize", "net.onnx", "--calib-data", "d.npz", "--effort", "fast", "--smallest").exit_code == 0
    result = invoke(*arguments, "-v")
    assert result.exit_code == (arguments[0] == "diff"), result.output
    for step in steps:
        assert re.search(rf"^{step}.* in \d+\.\d s$", result.stderr, re.MULTILINE), result.stderr


def test_a_log_never_damages_a_model(invoke: Invoke) -> None:
    before = Path("net.onnx").read_bytes()
    result = invoke("verify", "net.onnx", "--log-file", "net.onnx")
    assert result.exit_code == 2
    assert "is not a text file" in result.stderr
    assert Path("net.onnx").read_bytes() == before


def test_a_log_that_cannot_be_written_is_an_error(invoke: Invoke) -> None:
    result = invoke("verify", "net.onnx", "--log-file", "nowhere/run.log")
    assert result.exit_code == 2
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.stderr


def test_settings_can_name_the_log(invoke: Invoke) -> None:
    Path("qtool.toml").write_text('[verify]\nlog-file = "ci.log"\n')
    assert invoke("verify", "net.onnx").exit_code == 0
    assert "Gemm" in Path("ci.log").read_text()


def _on_a_terminal(monkeypatch: pytest.MonkeyPatch, *, columns: int) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_colour_is_left_out_where_nobody_wants_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _on_a_terminal(monkeypatch, columns=80)
    Console().fail("it broke", "mend it")
    assert _COLOUR.search(capsys.readouterr().err)
    monkeypatch.setenv("NO_COLOR", "1")
    Console().fail("it broke", "mend it")
    error = capsys.readouterr().err
    assert "it broke" in error
    assert not _COLOUR.search(error)


@pytest.mark.parametrize("columns", [40, 60])
def test_tables_fold_to_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    _on_a_terminal(monkeypatch, columns=columns)
    name = "/backbone/stage3/block2/conv/Conv"
    reason = "its output is read in float by a node that has no integer kernel"
    Console().table("Quantizable, but float", ("node", "operator", "reason"), [(name, "Conv", reason)])
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= columns
    cells = [line.strip("│").split("│") for line in lines if line.startswith("│")]
    assert "".join(cell[0].strip() for cell in cells) == name
    assert " ".join(cell[2].strip() for cell in cells).replace(" ", "") == reason.replace(" ", "")


@pytest.mark.parametrize(("count", "rows"), [(50, 50), (12_000, 50)])
def test_of_very_many_nodes_the_first_are_shown(capsys: pytest.CaptureFixture[str], count: int, rows: int) -> None:
    nodes = tuple(
        NodeCoverage(node=f"n{place}", operator="MatMul", kernel=None, reason="no time is saved", fix="--smallest")
        for place in range(count)
    )
    show_coverage(Console(), Coverage(runtime="onnxruntime", nodes=nodes))
    shown = capsys.readouterr().out
    assert len(re.findall(r"^│ n\d+ ", shown, re.MULTILINE)) == rows
    assert (f"and {count - rows} more" in shown) == (count > rows)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_for_a_shell(shell: str) -> None:
    # Otherwise it is for the shell that the tests were started from.
    surroundings = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = "from qtool.cli.app import app; app(prog_name='qtool')"
    result = subprocess.run(
        [sys.executable, "-c", script, "--show-completion", shell],
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "_QTOOL_COMPLETE=complete_" in result.stdout


def test_commands_and_options_are_completed() -> None:
    surroundings = {"_QTOOL_COMPLETE": "complete_bash", "COMP_WORDS": "qtool qua", "COMP_CWORD": "1"}
    result = CliRunner().invoke(app, [], prog_name="qtool", env=surroundings)
    assert result.stdout.split() == ["quantize"]
    surroundings |= {"COMP_WORDS": "qtool verify --min", "COMP_CWORD": "2"}
    result = CliRunner().invoke(app, [], prog_name="qtool", env=surroundings)
    assert result.stdout.split() == ["--min-coverage"]


@pytest.mark.parametrize("debug", [False, True])
def test_what_libraries_warn_of_is_for_those_who_debug(save: Any, tmp_path: Path, debug: bool) -> None:
    # The product of the two factors is beyond float32.
    path = save(
        "net.onnx",
        "g (float[n,8] x) => (float[n,8] y) { a = Gemm (x, w) b = Mul (a, c) y = Relu (b) }",
        w=np.full((8, 8), 1e30, np.float32),
        c=np.full(8, 1e30, np.float32),
    )
    command = [sys.executable, "-m", "qtool", "quantize", str(path), "--dry-run", *(["--debug"] if debug else [])]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert ("RuntimeWarning" in result.stderr) is debug
    assert (".py" in result.stderr) is debug
