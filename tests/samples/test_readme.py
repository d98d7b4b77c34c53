"""The README tells the truth: its commands run, its tables are complete."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
import typing
from pathlib import Path

import pytest
from typer.models import OptionInfo
from typer.testing import CliRunner

from qtool.calib.datasets.images import PRESETS, Preprocess
from qtool.calib.ranges import RANGE_METHODS
from qtool.cli.app import app
from qtool.cli.options.settings import parameters
from qtool.cli.quantize import quantize
from qtool.reporting.figures import FIGURES

COMMANDS = (
    "convert",
    "merge-lora",
    "inspect",
    "audit",
    "optimize",
    "split",
    "passes",
    "calibrate",
    "sensitivity",
    "quantize",
    "verify",
    "explain",
    "diff",
    "doctor",
    "report",
    "dequantize",
)


def _blocks(readme: str) -> list[tuple[str, str]]:
    """Returns the code blocks as (language, text)."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)


def _section(readme: str, title: str) -> str:
    return re.split(r"^#{2,3} ", readme.split(f"\n{title}", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_the_commands_run_as_they_stand(readme: str, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    (clone / "demo-output").mkdir()
    tasks = readme[readme.index("\n## Tasks") : readme.index("\n## Data")]
    ran = []
    for language, text in _blocks(tasks):
        if language == "toml":
            (clone / "qtool.toml").write_text(text, encoding="utf-8")
        lines = [line.removeprefix("$ ") for line in text.splitlines()]
        for number, line in enumerate(lines):
            if not line.startswith("qtool "):
                continue
            command = shlex.split(line)[1:]
            expected = int(lines[number + 2]) if lines[number + 1 : number + 2] == ["echo $?"] else 0
            result = CliRunner().invoke(app, command)
            assert result.exit_code == expected, f"{line}\n{result.output}"
            ran.append(command[0])
    assert set(ran) == set(COMMANDS)
    assert {path.name for path in clone.iterdir()} == {"samples", "demo-output", "qtool.toml"}


def test_the_settings_are_toml(readme: str) -> None:
    (settings,) = [text for language, text in _blocks(readme) if language == "toml"]
    assert tomllib.loads(settings)["model"] == "samples/mnist_cnn.pth"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_described(readme: str, command: str) -> None:
    name = command.replace("-", "_")
    function = getattr(importlib.import_module(f"qtool.cli.{name}"), name)
    options = {
        f"--{key}"
        for parameter in parameters(function)
        if not parameter.is_argument
        for key in (*parameter.keys, *parameter.negations)
    }
    own = set(re.findall(r"--[a-z][a-z0-9-]+", _section(readme, f"### `qtool {command}")))
    shared = set(re.findall(r"--[a-z][a-z0-9-]+", _section(readme, "## Commands")))
    if command == "quantize":
        shared |= {"--spread", "--percentile", "--entropy-bins", "--mse-candidates"}
    assert not options - own - shared
    assert not own - options, "described, but not there"


def test_the_defaults_of_methods_are_those_of_their_options(readme: str) -> None:
    section = _section(readme, "### `qtool quantize")
    hints = typing.get_type_hints(quantize, include_extras=True).values()
    options = [info for hint in hints for info in typing.get_args(hint)[1:] if isinstance(info, OptionInfo)]
    found = {info.default: re.search(r"Default: ([\d.]+)\.", info.help or "") for info in options}
    defaults = {name: match[1] for name, match in found.items() if match}
    assert len(defaults) >= 4
    for name, value in defaults.items():
        assert re.search(rf"`{name}`[^|]*; default {re.escape(value)} ", section), name


def test_every_figure_is_described(readme: str) -> None:
    assert re.findall(r"^\| `(\w+)`", _section(readme, "## Figures"), re.MULTILINE) == list(FIGURES)


@pytest.mark.parametrize(
    ("title", "names"),
    [("## Data", {*PRESETS, *Preprocess.__dataclass_fields__}), ("### `qtool quantize", RANGE_METHODS)],
)
def test_every_preset_and_method_is_described(readme: str, title: str, names: set[str]) -> None:
    assert not set(names) - set(re.findall(r"^\| `([^`]+)`", _section(readme, title), re.MULTILINE))


def test_links_to_files_lead_somewhere(readme: str, root: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in link]
    assert links
    assert not [link for link in links if not (root / link).exists()]
