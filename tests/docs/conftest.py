"""The documentation as it stands, and a folder that looks like a clone after ``make demo``."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qtool.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
# Pages of commands hold these, and are read there.
NOTES = ROOT / "docs" / "commands" / "notes"
Page = Callable[[str], str]


def pages() -> list[Path]:
    """Every page that a person reads, the README first."""
    return [ROOT / "README.md", *sorted(path for path in ROOT.glob("docs/**/*.md") if path.parent != NOTES)]


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Returns the code blocks as (language, text)."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands_in(text: str) -> list[tuple[str, int]]:
    """Returns the lines of code that begin with ``qtool``, each with the exit code that the page tells, or 0."""
    found = []
    lines = [line.removeprefix("$ ") for line in text.splitlines()]
    for number, line in enumerate(lines):
        if line.startswith("qtool "):
            found.append((line, int(lines[number + 2]) if lines[number + 1 : number + 2] == ["echo $?"] else 0))
    return found


def run_command(line: str, expected: int = 0) -> str:
    """Runs a line in the working folder, and returns the name of its command."""
    command = shlex.split(line)[1:]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == expected, f"{line}\n{result.output}"
    return command[0]


def demo_block() -> str:
    """Returns the commands of the demo, as the quickstart shows them."""
    quickstart = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    return code_blocks(quickstart.partition("\n## Run the demo\n")[2])[0][1]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def page() -> Page:
    """Reads a page by its path from the root."""
    return lambda path: (ROOT / path).read_text(encoding="utf-8")


def _with_samples(folder: Path) -> Path:
    shutil.copytree(ROOT / "samples", folder / "samples", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="session")
def demo_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands of the demo write; the last one only reads."""
    folder = _with_samples(tmp_path_factory.mktemp("demo"))
    (folder / "demo-output").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert [run_command(line) for line, _ in commands_in(demo_block())[:-1]] == ["convert", "calibrate", "quantize"]
    return folder / "demo-output"


@pytest.fixture
def clone(tmp_path: Path, demo_output: Path) -> Path:
    """A folder with the samples and the results of the demo in it, and nothing else."""
    shutil.copytree(demo_output, tmp_path / "demo-output")
    return _with_samples(tmp_path)
