"""Help that a person reads: short, in groups, complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from typer.models import OptionInfo
from typer.testing import CliRunner

from qtool.backends.targets import AUTO, PRESETS
from qtool.cli.app import COMMANDS, app
from qtool.cli.options.groups import COMMAND_GROUPS, OPTION_GROUPS, RARE
from qtool.cli.options.settings import parameters
from qtool.config import Parameter

_MOST_LINES = {"--help": 100, "--help-all": 120}
_COLUMNS = 80
# Without a group of their own: the parser adds them.
_HELP = {"--help", "--help-all"}
_HEADING = re.compile(r"^(\w[\w ]*):$", re.MULTILINE)


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _help(*arguments: str) -> str:
    # What is left of the columns; the runner does not look at COLUMNS.
    result = CliRunner().invoke(app, list(arguments), terminal_width=_COLUMNS - 2)
    assert result.exit_code == 0, result.output
    return result.stdout


def _of(command: str, option: str = "--help") -> str:
    return _help(command.replace("_", "-"), option)


def _function(command: str) -> Any:
    (found,) = [info.callback for info in app.registered_commands if info.callback.__name__ == command]
    return found


def _options(command: str) -> tuple[Parameter, ...]:
    return tuple(parameter for parameter in parameters(_function(command)) if not parameter.is_argument)


def _infos(command: str) -> list[OptionInfo]:
    hints = get_type_hints(_function(command), include_extras=True).values()
    annotated = [hint for hint in hints if get_origin(hint) is Annotated]
    return [info for hint in annotated for info in get_args(hint)[1:] if isinstance(info, OptionInfo)]


def _listed(text: str) -> list[str]:
    """Returns the long names that stand in the left column, in order."""
    rows = re.findall(r"^  (?:-\w, )?(--\S.*)$", text, re.MULTILINE)
    columns = [re.split(r" {2,}", row)[0] for row in rows]
    return [name for column in columns for name in re.findall(r"--[a-z][a-z0-9-]*", column)]


@pytest.mark.parametrize("option", _MOST_LINES)
def test_the_help_of_a_command_is_short(command: str, option: str) -> None:
    lines = _of(command, option).splitlines()
    assert len(lines) <= _MOST_LINES[option]
    assert max(map(len, lines)) <= _COLUMNS
    assert not [line for line in lines if line != line.rstrip()]


def test_every_option_is_listed_once(command: str) -> None:
    names = [name for option in _options(command) for name in (*option.keys, *option.negations)]
    long_names = {f"--{name}" for name in names}
    assert Counter(_listed(_of(command, "--help-all"))) == Counter(long_names | _HELP)


def test_only_rare_options_wait_for_the_whole_help(command: str) -> None:
    usual, whole = _of(command), _of(command, "--help-all")
    rare = [option for option in _options(command) if RARE & {f"--{key}" for key in option.keys}]
    names = {f"--{name}" for option in rare for name in (*option.keys, *option.negations)}
    assert set(_listed(whole)) - set(_listed(usual)) == names
    assert _listed(usual) == [name for name in _listed(whole) if name not in names]
    assert (f"{len(rare)} more option" in usual) == bool(rare)
    assert "more option" not in whole


def test_every_option_has_a_known_group_and_one_short_text(command: str) -> None:
    for info in _infos(command):
        assert info.rich_help_panel in OPTION_GROUPS
        text, *values = (info.help or "").splitlines()
        assert text.endswith((".", ":")), text
        assert len(text) <= 120, text
        assert all(": " in value for value in values)


def test_groups_stand_in_one_order(command: str) -> None:
    headings = _HEADING.findall(_of(command, "--help-all"))
    groups = [heading for heading in headings if heading != "Arguments"]
    assert groups == [group for group in OPTION_GROUPS if group in groups]
    assert groups[-1] == "General"


def test_rare_options_exist() -> None:
    there = {f"--{key}" for command in COMMANDS for option in _options(command) for key in option.keys}
    assert there >= RARE


def test_the_list_of_commands_is_grouped_and_whole() -> None:
    text = _help("--help")
    assert len(text.splitlines()) <= 50
    assert _HEADING.findall(text)[:-1] == list(COMMAND_GROUPS)
    listed = re.findall(r"^  ([a-z][a-z-]+)  +(\S.*)$", text, re.MULTILINE)
    assert sorted(name for name, _ in listed) == sorted(name.replace("_", "-") for name in COMMANDS)
    assert not [meaning for _, meaning in listed if meaning.endswith("...")]
    assert set(COMMANDS.values()) == set(COMMAND_GROUPS)


@pytest.mark.parametrize(
    "term", ["post-training quantization", "QDQ", "GPTQ", "SmoothQuant", "cross-layer equalization", "INT8"]
)
def test_the_field_finds_its_terms(term: str) -> None:
    assert term in " ".join(_help("--help").split())
    assert term.lower() in " ".join(_of("quantize").split()).lower()


@pytest.mark.parametrize("command", ["quantize", "calibrate", "sensitivity", "verify", "optimize"])
def test_every_target_has_its_line(command: str) -> None:
    text = _of(command)
    for name, machine in {AUTO: "this machine", **{name: scheme.standing for name, scheme in PRESETS.items()}}.items():
        assert re.search(rf"^    {name} +{re.escape(machine)}$", text, re.MULTILINE), name


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("quantize", "[OPTIONS] [MODEL]"),
        ("verify", "[OPTIONS] MODEL"),
        ("merge_lora", "[OPTIONS] BASE ADAPTER..."),
        ("report", "[OPTIONS] [FLOAT] [QUANTIZED...]"),
        ("doctor", "[OPTIONS]"),
    ],
)
def test_the_usage_names_the_arguments(command: str, usage: str) -> None:
    assert _of(command).partition("\n")[0].endswith(f" {command.replace('_', '-')} {usage}")


def test_defaults_are_told_from_the_signature() -> None:
    text = " ".join(_of("report").split())
    assert "--rounds N Rounds of timing. Default: 25." in text


def test_a_wide_terminal_is_used_up_to_a_readable_width() -> None:
    lengths = {}
    for columns in (80, 300):
        command = [sys.executable, "-m", "qtool", "report", "--help"]
        result = subprocess.run(
            command, env={**os.environ, "COLUMNS": str(columns)}, capture_output=True, text=True, check=True
        )
        lengths[columns] = [len(line) for line in result.stdout.splitlines()]
    assert max(lengths[80]) <= 80 < max(lengths[300]) <= 100
    assert len(lengths[300]) < len(lengths[80]) <= _MOST_LINES["--help"]


def test_the_whole_help_needs_no_arguments_and_runs_nothing() -> None:
    assert _help("diff", "--help-all").startswith("Usage: ")
    assert _help("explain", "model.onnx", "--help-all").startswith("Usage: ")
    assert "--help-all" in _help("--help-all")
