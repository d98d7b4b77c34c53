import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qtool import __version__
from qtool.calib.errors import CalibError
from qtool.cli.app import app
from qtool.errors import GateError, InputError, OutputError, QtoolError, RuntimeRefusedError, UsageError
from qtool.formats.errors import FormatError

HEAVY = ("numpy", "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "PIL")


@pytest.fixture
def fail_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a command whose work ends in the given error."""
    monkeypatch.chdir(tmp_path)

    def run(error: BaseException, *options: str) -> Any:
        def raise_it(*_: object) -> None:
            raise error

        monkeypatch.setattr("qtool.workflows.report.report.compare", raise_it)
        return CliRunner().invoke(app, ["report", "a.onnx", "b.onnx", "--data", "d.npz", *options])

    return run


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (QtoolError, 2),
        (UsageError, 2),
        (InputError, 2),
        (OutputError, 2),
        (RuntimeRefusedError, 2),
        (FormatError, 2),
        (CalibError, 2),
        (GateError, 1),
    ],
)
def test_every_error_is_two_lines_and_an_exit_code(fail_with: Callable[..., Any], kind: Any, code: int) -> None:
    result = fail_with(kind("the thing is wrong", fix="do the other thing"))
    assert result.exit_code == code
    assert result.stderr == "error: the thing is wrong\n  fix: do the other thing\n"
    assert result.stdout == ""


def test_a_long_problem_stays_on_one_line(fail_with: Callable[..., Any]) -> None:
    path = "/".join(["folder"] * 60)
    assert f"error: {path}\n" in fail_with(InputError(path, fix="x")).stderr


def test_square_brackets_in_names_are_no_markup(fail_with: Callable[..., Any]) -> None:
    assert (
        "error: no output 'x[bold]' :smile:\n" in fail_with(InputError("no output 'x[bold]' :smile:", fix="x")).stderr
    )


def test_a_defect_is_3_and_asks_for_debug(fail_with: Callable[..., Any]) -> None:
    result = fail_with(ZeroDivisionError("division\nby zero"))
    assert result.exit_code == 3
    assert "a defect in qtool: ZeroDivisionError: division by zero" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("error", [InputError("a", fix="b"), ZeroDivisionError("c")])
def test_debug_shows_the_traceback(fail_with: Callable[..., Any], error: Exception) -> None:
    result = fail_with(error, "--debug")
    assert "Traceback" in result.stderr
    assert "raise_it" in result.stderr
    assert "error: " in result.stderr


def test_a_missing_file_is_2_and_named(fail_with: Callable[..., Any]) -> None:
    result = fail_with(FileNotFoundError(2, "No such file or directory", "model.onnx"))
    assert result.exit_code == 2
    assert "cannot use model.onnx: no such file or directory" in result.stderr


def test_too_little_memory_is_2_with_a_way_out(fail_with: Callable[..., Any]) -> None:
    result = fail_with(MemoryError())
    assert result.exit_code == 2
    assert "--batch-size" in result.stderr


def test_ctrl_c_is_130_without_a_traceback(fail_with: Callable[..., Any]) -> None:
    result = fail_with(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr.startswith("interrupted")
    assert "Traceback" not in result.stderr


def test_a_reader_that_went_away_is_141_and_silent(fail_with: Callable[..., Any]) -> None:
    result = fail_with(BrokenPipeError())
    assert result.exit_code == 141
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["reprot"], "Did you mean 'report'"),
        (["report", "--no-latensy"], "--no-latency"),
        (["report", "--rounds", "many"], "--rounds"),
        (["quantize", "--scheme", "statics"], "value for '--scheme': 'statics' is not one of 'static', 'dynamic'"),
        (["verify", "a", "b"], "unexpected extra argument"),
    ],
)
def test_a_slip_on_the_command_line_is_2_with_a_hint(arguments: list[str], word: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert word in result.stderr
    assert result.stderr.count("\n") == 2
    assert "fix: `qtool" in result.stderr


def test_a_wrong_value_in_the_settings_is_blamed_on_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qtool.toml").write_text("[report]\nrounds = 0\n")
    result = CliRunner().invoke(app, ["report"])
    assert result.exit_code == 2
    assert "settings file" in result.stderr


def test_help_works_with_broken_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qtool.toml").write_text("broken")
    assert CliRunner().invoke(app, ["report", "--help"]).exit_code == 0
    result = CliRunner().invoke(app, ["report"])
    assert result.exit_code == 2
    assert "qtool.toml is not valid TOML" in result.stderr


def test_version_and_bare_call_are_0() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"qtool {__version__}\n"
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert "report" in result.stdout


def test_embedders_get_the_exit_code_and_keep_their_process() -> None:
    assert app(["reprot"], standalone_mode=False) == 2


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import json, sys\n"
        "from qtool.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        f"print(json.dumps([code, [name for name in {HEAVY} if name in sys.modules]]))"
    )
    for arguments in (["--help"], ["report", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout.splitlines()[-1]) == [0, []], arguments


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "qtool", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"qtool {__version__}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is another error there")
def test_a_pipe_that_closes_early_ends_the_command_quietly(tmp_path: Path) -> None:
    script = (
        "import sys, qtool.workflows.report.report as work\n"
        "from qtool.cli.console import Console\n"
        "def compare(*_):\n    sys.stdin.read()\n    Console().table('t', ['a'], [['b']])\n"
        "work.compare = compare\n"
        "from qtool.cli.app import main\n"
        "sys.argv = ['qtool', 'report', 'a.onnx', 'b.onnx', '--data', 'd']\n"
        "main()\n"
    )
    command, pipe = [sys.executable, "-c", script], subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()  # from here on it prints
        said = process.stderr.read()
    assert (process.returncode, said) == (141, b"")
