"""Help in groups, one short line an option, that fits a terminal of 80 columns.

Typer's own layout frames everything, which leaves a third of such a line for the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, TypeAlias

import typer
import typer.core

from qtool.cli.options.groups import COMMAND_GROUPS, GENERAL, OPTION_GROUPS, RARE

HELP_OPTIONS = ("-h", "--help")
HELP_ALL = "--help-all"
CONTEXT_SETTINGS: Mapping[str, Any] = {"help_option_names": [*HELP_OPTIONS, HELP_ALL], "max_content_width": 100}

Row: TypeAlias = tuple[str, str]

_SHOWS_ALL_KEY = "qtool.help_all"
_NAMES_COLUMNS = 26
# Sections and what stands between the columns.
_OTHER_COLUMNS = 6


class GroupedCommand(typer.core.TyperCommand):
    """Shows its options by their ``rich_help_panel``; those in ``RARE`` only with ``--help-all``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses ``args``, of which one may ask for help."""
        ctx.meta[_SHOWS_ALL_KEY] = HELP_ALL in args
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Returns what stands behind the command's name: its arguments, those that may be left out in brackets."""
        arguments = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "argument"]
        names = [(argument.metavar or "", argument.required) for argument in arguments]
        return ["[OPTIONS]", *(name if required else f"[{name}]" for name, required in names)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the arguments, and every group that has options to show."""
        parameters = self.get_params(ctx)
        arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
        _write(formatter, "Arguments", [(argument.metavar or "", _text(argument)) for argument in arguments])
        write_groups(ctx, formatter, [parameter for parameter in parameters if parameter.param_type_name == "option"])


class GroupedCommands(typer.core.TyperGroup):
    """Shows its commands by their ``rich_help_panel``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses ``args``, of which one may ask for help."""
        ctx.meta[_SHOWS_ALL_KEY] = HELP_ALL in args
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands first, which most people look for."""
        self.format_commands(ctx, formatter)
        write_groups(ctx, formatter, self.get_params(ctx))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the groups of commands."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        width = max(len(name) for name, _ in found)
        for group in COMMAND_GROUPS:
            rows = [
                (name.ljust(width), command.get_short_help_str(formatter.width - width - _OTHER_COLUMNS))
                for name, command in found
                if command is not None and getattr(command, "rich_help_panel", None) == group
            ]
            _write(formatter, group, rows, columns=width)


def write_groups(ctx: Any, formatter: Any, options: Sequence[Any]) -> None:
    """Writes options in their groups, without the rare ones unless they were asked for."""
    shows_all = ctx.meta.get(_SHOWS_ALL_KEY, False)
    shown = [option for option in options if shows_all or not RARE.intersection(option.opts)]
    for group in OPTION_GROUPS:
        rows = [row for option in shown if group_of(option) == group for row in _rows(ctx, option)]
        _write(formatter, group, rows)
    left_out = len(options) - len(shown)
    if left_out:
        formatter.write_paragraph()
        formatter.write_text(f"{left_out} more options are shown by {HELP_ALL}.")


def group_of(option: Any) -> str:
    """Returns the group of an option; those that typer adds itself, such as ``--help``, have none of their own."""
    return getattr(option, "rich_help_panel", None) or GENERAL


def _rows(ctx: Any, option: Any) -> Iterable[Row]:
    if HELP_ALL in option.opts:
        yield ", ".join(HELP_OPTIONS), "Show this help."
        yield HELP_ALL, "Show this help with the rarely needed options."
        return
    text, *values = _text(option).splitlines()
    names, _ = option.get_help_record(ctx)
    yield names, text
    # Values that have a line each: `name: what it is`.
    for value in values:
        name, _, meaning = value.partition(": ")
        yield f"  {name}", meaning


def _text(parameter: Any) -> str:
    """Returns the help of a parameter with its default, unless that is to leave something out."""
    text = parameter.help or ""
    default = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
    if not parameter.show_default or default is None or isinstance(default, bool):
        return text
    return f"{text} Default: {default}."


def _write(formatter: Any, title: str, rows: Sequence[Row], *, columns: int = _NAMES_COLUMNS) -> None:
    if rows:
        with formatter.section(title):
            # All tables of one page have their columns in the same places.
            formatter.write_dl([(left.ljust(columns), right) for left, right in rows], col_max=columns)
