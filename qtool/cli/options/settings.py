"""Tells the settings what options the commands have, by the commands' own signatures."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from typer.models import ArgumentInfo, OptionInfo

from qtool.config import Kind, Parameter, command_defaults, find_settings

_KINDS: Mapping[Any, Kind] = {bool: "flag", int: "integer", float: "number"}


def defaults(folder: Path, commands: Mapping[str, Callable[..., object]]) -> dict[str, dict[str, Any]]:
    """Returns what the settings in ``folder`` give, by command and parameter name; nothing where there are none.

    Raises:
        UsageError: the settings are no TOML, or do not fit the commands.
    """
    settings = find_settings(folder)
    if settings is None:
        return {}
    return command_defaults(settings, {name: parameters(function) for name, function in commands.items()})


def parameters(command: Callable[..., object]) -> tuple[Parameter, ...]:
    """Reads the options and arguments off a command's annotations.

    The signature is read, and not the parser that typer makes of it, which looks different from version to version.
    """
    found = []
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        if get_origin(hint) is not Annotated:
            continue
        base, *extras = get_args(hint)
        for info in extras:
            if isinstance(info, OptionInfo):
                found.append(_option(name, base, info))
            elif isinstance(info, ArgumentInfo):
                found.append(_argument(name, base, info))
    # Where an option has the name of an argument (`--model` builds what MODEL's weights belong to), the key in the
    # command's table is the option's: the later entry of a key counts.
    return tuple(sorted(found, key=lambda parameter: not parameter.is_argument))


def _option(name: str, base: Any, info: OptionInfo) -> Parameter:
    kind, many = _kind(base)
    positive, negative = [], []
    # Inside of Annotated, typer moves the first name into `default` and takes it back out when it builds its parser.
    first = (info.default,) if isinstance(info.default, str) else ()
    for declaration in (*first, *(info.param_decls or ())) or (f"--{name.replace('_', '-')}",):
        on, _, off = declaration.partition("/")
        positive += [on.strip()[2:]] if on.strip().startswith("--") else []
        negative += [off.strip()[2:]] if off.strip().startswith("--") else []
    return Parameter(
        name=name, keys=tuple(positive), negations=tuple(negative), kind=kind, many=many, is_argument=False
    )


def _argument(name: str, base: Any, info: ArgumentInfo) -> Parameter:
    kind, many = _kind(base)
    key = (info.metavar or name).strip("[].").lower().replace("_", "-")
    return Parameter(name=name, keys=(key,), kind=kind, many=many, is_argument=True)


def _kind(hint: Any) -> tuple[Kind, bool]:
    """Returns what one value is, and whether it takes several."""
    if get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is list:
        return _kind(get_args(hint)[0])[0], True
    if get_origin(hint) is Literal:
        return "text", False
    return _KINDS.get(hint, "text"), False
