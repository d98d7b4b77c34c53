"""Pages of commands say what the commands take, no less and no more."""

from __future__ import annotations

import importlib.util
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from typer.models import OptionInfo

from qtool.calib.ranges import RANGE_METHODS
from qtool.cli.options.settings import parameters
from qtool.cli.quantize import quantize
from tests.docs.conftest import NOTES, ROOT, Page

_SHARED = {"--help", "--help-all", "--version", "--install-completion", "--show-completion"}


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    importlib.sys.modules[path.stem] = module  # type: ignore[attr-defined]
    spec.loader.exec_module(module)
    return module


WRITER = _loaded(ROOT / "docs" / "write_commands.py")
COMMANDS: Mapping[str, Callable[..., object]] = WRITER.commands()


def _options(function: Callable[..., object]) -> set[str]:
    return {
        f"--{key}"
        for parameter in parameters(function)
        if not parameter.is_argument
        for key in (*parameter.keys, *parameter.negations)
    }


def _named_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))


def test_the_pages_are_those_that_the_command_line_gives() -> None:
    folder = ROOT / "docs" / "commands"
    stored = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    assert stored == WRITER.pages(), "run make docs"


def test_notes_are_about_commands() -> None:
    assert {path.stem for path in NOTES.glob("*.md")} <= {"index", *COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_has_a_line_with_a_meaning(page: Page, command: str) -> None:
    rows = re.findall(r"^\| (`-.*?) \| (.*?) \|(.*?)\|$", page(f"docs/commands/{command}.md"), re.MULTILINE)
    described = {name for names, meaning, _ in rows if meaning.strip() for name in _named_in(names)}
    assert not _options(COMMANDS[command]) - described


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_names_no_option_that_is_not_there(page: Page, command: str) -> None:
    everywhere = set().union(*map(_options, COMMANDS.values())) | _SHARED
    text = page(f"docs/commands/{command}.md")
    assert not _named_in(text) - everywhere
    tables = "\n".join(row.split(" | ")[0] for row in text.splitlines() if row.startswith("| `-"))
    assert not _named_in(tables) - _options(COMMANDS[command]), "described, but not there"


@pytest.mark.parametrize("path", ["README.md", *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/g*/*"))])
def test_guides_name_no_option_that_is_not_there(page: Page, path: str) -> None:
    # Those of pip, docker, sbatch and ray.
    foreign = r"--extra-index-url|--volume|--parsable|--dependency|--wrap|--head|--address"
    others = set(re.findall(foreign, page(path)))
    assert not _named_in(page(path)) - set().union(*map(_options, COMMANDS.values())) - _SHARED - others


def test_the_defaults_of_methods_are_those_of_their_options(page: Page) -> None:
    text = page("docs/commands/quantize.md")
    hints = typing.get_type_hints(quantize, include_extras=True).values()
    options = [info for hint in hints for info in typing.get_args(hint)[1:] if isinstance(info, OptionInfo)]
    found = {info.default: re.search(r"[Dd]efault: ([\d.]*\d)", info.help or "") for info in options}
    defaults = {name: match[1] for name, match in found.items() if match}
    methods = [name for name in defaults if name in ("--percentile", "--spread", "--entropy-bins", "--mse-candidates")]
    assert len(methods) == 4
    for name in methods:
        assert re.search(rf"`{name}`[^|]*; default {re.escape(defaults[name])} ", text), name


def test_every_range_method_is_described(page: Page) -> None:
    rows = re.findall(r"^\| `([^`]+)`", page("docs/commands/quantize.md"), re.MULTILINE)
    assert not set(RANGE_METHODS) - set(rows)
