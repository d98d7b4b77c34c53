"""Settings in the working folder, so that a script can say just ``qtool quantize --per-channel``.

They stand in ``qtool.toml``, or under ``[tool.qtool]`` in ``pyproject.toml``; where both do, ``qtool.toml`` counts. At
the top stand the keys of SHARED, which every command gets that has a use for them; a table named after a command gives
that command's options by their long names. The command line wins over a command's table, and that over the top.
Relative paths are relative to the working folder, which is that of the settings::

    model = "model.pth"
    calib_data = "calib.npz"
    eval_data = "eval.npz"
    output_dir = "build"

    [quantize]
    per-channel = true
    exclude = ["re:^head/"]

    [report]
    fail-if = ["top1_drop > 0.5"]
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qtool.errors import UsageError

Kind: TypeAlias = Literal["flag", "integer", "number", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One option or argument of a command, as the settings see it.

    Attributes:
        name: the parameter of the command's function.
        keys: what it is called in the settings, with dashes.
        negations: keys that set a flag to false when they are true.
        kind: what it takes.
        many: whether it takes a list.
        is_argument: whether it stands on the command line without a name.
    """

    name: str
    keys: tuple[str, ...]
    negations: tuple[str, ...] = ()
    kind: Kind
    many: bool
    is_argument: bool


@dataclass(frozen=True, slots=True)
class Shared:
    """What a key at the top of the settings stands for in a command.

    Attributes:
        keys: the parameter's key in the command.
        is_argument: whether it is an argument.
        commands: the commands that get it; None for every one that has such a parameter.
    """

    keys: tuple[str, ...]
    is_argument: bool
    commands: tuple[str, ...] | None = None


SHARED: Mapping[str, Shared] = {
    # Not for the commands that take a quantized model.
    "model": Shared(("model",), is_argument=True, commands=("convert", "inspect", "calibrate", "quantize")),
    "calib-data": Shared(("calib-data",), is_argument=False),
    "eval-data": Shared(("data", "eval-data"), is_argument=False),
    "output-dir": Shared(("output-dir",), is_argument=False),
}

_WANTED: Mapping[Kind, str] = {
    "flag": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "text": "a text in quotes",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a settings file says, unchecked.

    Attributes:
        source: the file, and the table in it, as errors call it.
        values: its keys.
    """

    source: str
    values: Mapping[str, Any]


def find_settings(folder: Path) -> Settings | None:
    """Reads the settings in ``folder``, or returns None where it has none.

    Raises:
        UsageError: the file is no TOML.
    """
    own = folder / "qtool.toml"
    if own.is_file():
        return Settings(own.name, _parse(own))
    project = folder / "pyproject.toml"
    # A project file that never speaks of qtool is not ours to read, or to complain about.
    if not project.is_file() or b"qtool" not in project.read_bytes():
        return None
    values = _parse(project).get("tool", {}).get("qtool")
    if values is None:
        return None
    if not isinstance(values, dict):
        raise UsageError("pyproject.toml: tool.qtool is not a table", fix="write [tool.qtool] and the keys below it")
    return Settings("pyproject.toml, [tool.qtool]", values)


def command_defaults(settings: Settings, commands: Mapping[str, Sequence[Parameter]]) -> dict[str, dict[str, Any]]:
    """Turns settings into defaults by command and parameter name.

    Raises:
        UsageError: a key is unknown, or a value is of another kind than the parameter.
    """
    defaults: dict[str, dict[str, Any]] = {name: {} for name in commands}
    tables: dict[str, Mapping[str, Any]] = {}
    for key, value in settings.values.items():
        dashed = _dashed(key)
        if dashed in SHARED:
            _check(value, "text", f"{settings.source}: {key}", key)
            for command, parameter in _receivers(SHARED[dashed], commands):
                defaults[command][parameter.name] = [value] if parameter.many else value
        elif key in commands:
            if not isinstance(value, dict):
                raise UsageError(
                    f"{settings.source}: {key} is {_shown(value)}, and qtool {key} is a command",
                    fix=f"write a table: [{key}] and its options below it",
                )
            tables[key] = value
        else:
            raise _unknown(key, f"{settings.source}:", [*(name.replace("-", "_") for name in SHARED), *commands])
    # Tables come after the keys at the top, in any order of the file.
    for command, table in tables.items():
        defaults[command].update(_options(table, commands[command], f"{settings.source}: {command}"))
    return defaults


def _options(table: Mapping[str, Any], parameters: Sequence[Parameter], where: str) -> dict[str, Any]:
    known = {key: parameter for parameter in parameters for key in (*parameter.keys, *parameter.negations)}
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        parameter = known.get(_dashed(key))
        if parameter is None:
            raise _unknown(key, f"{where} has", list(known))
        if parameter.name in defaults:
            raise UsageError(f"{where}.{key} is set twice, under two names", fix="keep one of them")
        checked = _checked(value, parameter, f"{where}.{key}", key)
        defaults[parameter.name] = not checked if _dashed(key) in parameter.negations else checked
    return defaults


def _checked(value: Any, parameter: Parameter, where: str, key: str) -> Any:
    if not parameter.many:
        _check(value, parameter.kind, where, key)
        return value
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        _check(entry, parameter.kind, where, key)
    return entries


def _check(value: Any, kind: Kind, where: str, key: str) -> None:
    fits = {
        "flag": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "text": isinstance(value, str),
    }
    if not fits[kind]:
        example = {"flag": "true", "integer": "1", "number": "0.5", "text": '"..."'}[kind]
        raise UsageError(f"{where} is {_shown(value)}, it takes {_WANTED[kind]}", fix=f"write {key} = {example}")


def _receivers(shared: Shared, commands: Mapping[str, Sequence[Parameter]]) -> Iterable[tuple[str, Parameter]]:
    for command, parameters in commands.items():
        if shared.commands is None or command in shared.commands:
            for parameter in parameters:
                if parameter.is_argument == shared.is_argument and set(parameter.keys) & set(shared.keys):
                    yield command, parameter


def _unknown(key: str, where: str, known: Sequence[str]) -> UsageError:
    near = difflib.get_close_matches(_dashed(key), known, n=1, cutoff=0.0)
    return UsageError(f"{where} no setting '{key}'", fix=f"did you mean '{near[0]}'? all of them: {', '.join(known)}")


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} is not valid TOML: {error}", fix="correct it at that place") from error


def _dashed(key: str) -> str:
    return key.replace("_", "-")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return repr(value)
