"""Writes a page for every command from the command line itself, and the list of all commands.

Run: python docs/write_commands.py

A page holds what ``--help`` says, in tables, and behind it the notes of ``docs/commands/notes/COMMAND.md``, where there
are some. ``make docs`` runs this file.
"""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo, OptionInfo

from qtool.cli.app import app

FOLDER = Path(__file__).resolve().parent / "commands"
_WRITTEN = "<!-- Written by docs/write_commands.py (make docs): edit the command's help, or docs/commands/notes/{}. -->"
_OTHER_OPTIONS = "Options"
_TYPE_NAMES: Mapping[Any, str] = {int: "N", float: "NUMBER", Path: "PATH"}
_DEFAULT_IN_HELP = re.compile(r"\s*(?:\[default: (?P<bracket>[^\]]+)\]|\bDefault: (?P<sentence>[^:]+?))\.?$")
_CODE = re.compile(r"(`[^`]*`)")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionRow:
    """One line of a table.

    Attributes:
        panel: title of the group that ``--help`` shows it in.
        names: what is typed, with its value: ``--output FILE``, ``-o FILE``.
        meaning: the help text without the default.
        default: what counts where it is not given, as Markdown; empty where nothing does.
    """

    panel: str
    names: tuple[str, ...]
    meaning: str
    default: str


def commands() -> dict[str, Callable[..., object]]:
    """Returns the functions of the commands that ``qtool --help`` shows, by name, in its order."""
    shown = [(info.name, info.callback) for info in app.registered_commands if not info.hidden]
    return {name or function.__name__.replace("_", "-"): function for name, function in shown if function is not None}


def page_of(name: str) -> str:
    """Returns the page of a command as Markdown."""
    function = commands()[name]
    arguments, options = list(_arguments(function)), list(_options(function))
    usage = " ".join(["qtool", name, "[OPTIONS]", *(argument for argument, _ in arguments)])
    lines = [_WRITTEN.format(f"{name}.md"), "", f"# qtool {name}", "", inspect.cleandoc(function.__doc__ or ""), ""]
    lines += ["```text", usage, "```", ""]
    if arguments:
        rows = [f"| `{argument}` | {_cell(text)} |" for argument, text in arguments]
        lines += ["## Arguments", "", "| argument | meaning |", "|---|---|", *rows, ""]
    for panel in dict.fromkeys(option.panel for option in options):
        lines += [f"## {panel}", "", "| option | meaning | default |", "|---|---|---|"]
        for option in options:
            if option.panel == panel:
                names = ", ".join(f"`{text}`" for text in option.names)
                lines.append(f"| {names} | {_cell(option.meaning)} | {option.default} |")
        lines.append("")
    return "\n".join([*lines, *_notes(name)])


def index_page() -> str:
    """Returns the list of the commands, in the groups of ``qtool --help``."""
    lines = [_WRITTEN.format("index.md"), "", "# Commands", ""]
    panels = {info.callback: info.rich_help_panel for info in app.registered_commands}
    named = {name: _panel(panels[function]) for name, function in commands().items()}
    for panel in dict.fromkeys(named.values()):
        lines += [f"## {panel}", ""] if panel != _OTHER_OPTIONS else []
        lines += ["| command | what it does |", "|---|---|"]
        for name in (name for name, of in named.items() if of == panel):
            first = inspect.cleandoc(commands()[name].__doc__ or "").partition("\n")[0]
            lines.append(f"| [`qtool {name}`]({name}.md) | {_cell(first)} |")
        lines.append("")
    return "\n".join([*lines, *_notes("index")])


def pages() -> dict[str, str]:
    """Returns all pages by file name."""
    return {"index.md": index_page(), **{f"{name}.md": page_of(name) for name in commands()}}


def _notes(name: str) -> list[str]:
    path = FOLDER / "notes" / f"{name}.md"
    return [path.read_text(encoding="utf-8")] if path.exists() else []


def _arguments(function: Callable[..., object]) -> Iterator[tuple[str, str]]:
    for parameter, _, info in _declared(function):
        if isinstance(info, ArgumentInfo) and not info.hidden:
            shown = info.metavar or parameter.name.upper()
            yield (shown if parameter.default is inspect.Parameter.empty or "[" in shown else f"[{shown}]"), _help(info)


def _options(function: Callable[..., object]) -> Iterator[OptionRow]:
    for parameter, base, info in _declared(function):
        if not isinstance(info, OptionInfo):
            continue
        # Inside of Annotated, typer moves the first name into `default`.
        first = (info.default,) if isinstance(info.default, str) else ()
        names = [*first, *(info.param_decls or ())] or [f"--{parameter.name.replace('_', '-')}"]
        value = "" if _one(base) is bool else f" {_braced(info.metavar or _value_name(_one(base)))}"
        meaning, default = _meaning_and_default(_help(info), parameter.default)
        yield OptionRow(
            panel=_panel(info.rich_help_panel),
            names=tuple(f"{part.strip()}{value}" for name in names for part in name.split("/")),
            meaning=meaning,
            default=default,
        )


def _declared(function: Callable[..., object]) -> Iterator[tuple[inspect.Parameter, Any, Any]]:
    """Yields parameters with their type and what typer was told of them.

    The signature is read, and not the parser that typer makes of it, which looks different from version to version.
    """
    for parameter in inspect.signature(function).parameters.values():
        if typing.get_origin(parameter.annotation) is typing.Annotated:
            base, *extras = typing.get_args(parameter.annotation)
            yield from ((parameter, base, info) for info in extras if isinstance(info, ArgumentInfo | OptionInfo))


def _one(hint: Any) -> Any:
    """Returns the type of one value of an optional or repeatable parameter."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _one(next(part for part in typing.get_args(hint) if part is not types.NoneType))
    if typing.get_origin(hint) in (list, tuple):
        return _one(typing.get_args(hint)[0])
    return hint


def _value_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "|".join(str(member.value) for member in hint)
    return _TYPE_NAMES.get(hint, "TEXT")


def _braced(value: str) -> str:
    """Returns ``a|b`` as ``{a,b}``: code in a table cannot hold a bar that all readers of Markdown show alike."""
    return f"{{{value.replace('|', ',')}}}" if "|" in value else value


def _help(info: ArgumentInfo | OptionInfo) -> str:
    """Returns a help text; a line that its author broke stays one."""
    lines = inspect.cleandoc(info.help or "").splitlines()
    return "\n".join(" ".join(line.split()) for line in lines if line.strip())


def _panel(panel: Any) -> str:
    return panel if isinstance(panel, str) else _OTHER_OPTIONS


def _meaning_and_default(text: str, value: Any) -> tuple[str, str]:
    """Splits a help text into what is meant and the default; where the text tells one, it is that one."""
    found = _DEFAULT_IN_HELP.search(text)
    meaning = text[: found.start()].rstrip() if found else text
    if isinstance(value, enum.Enum):
        value = value.value
    if value is True:
        return meaning, "on"
    if found:
        return meaning, _cell(found["bracket"] or found["sentence"])
    return meaning, f"`{value}`" if isinstance(value, int | float | str) and value is not False else ""


def _cell(text: str) -> str:
    """Returns plain text as the cell of a table: only what stands between backticks is Markdown."""
    parts = (part if part.startswith("`") else re.sub(r"([*<])", r"\\\1", part) for part in _CODE.split(text))
    return "".join(parts).replace("|", "\\|").replace("\n", "<br>")


def main() -> None:
    """Writes the pages, and removes those of commands that are gone."""
    written = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in written:
            path.unlink()
    for name, text in written.items():
        (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
