"""``--locked``: repeats a run with the options that its manifest recorded."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qtool.cli.options.model import model_path, model_source, trust
from qtool.errors import UsageError

if TYPE_CHECKING:
    from qtool.manifest import Manifest

_LOCK_KEY = "qtool.lock"
# Inputs have their place in the manifest; what a file may run is never taken from one; the rest changes no byte.
_NOT_RECORDED = frozenset(
    {
        *("model", "calib_data", "calib_stats", "output", "output_dir", "trust_pickle", "allow_global"),
        *("cluster", "locked", "dry_run", "force", "json", "quiet", "verbose", "log_file", "debug", "help"),
    }
)
_OF_THE_LOG = frozenset({"verbose", "log_file"})


def recorded_arguments(context: typer.Context) -> tuple[str, ...]:
    """Returns the options of a run, those of a settings file included, as they would stand on a command line."""
    arguments: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        if name in _NOT_RECORDED or value is None or value == parameter.default:
            continue
        if isinstance(value, bool):
            arguments.append((parameter.opts if value else parameter.secondary_opts)[0])
            continue
        for entry in value if isinstance(value, list | tuple) else (value,):
            arguments += [parameter.opts[0], str(entry.value if isinstance(entry, Enum) else entry)]
    return tuple(arguments)


def lock_of(context: typer.Context) -> Manifest | None:
    """Returns the manifest that the run in ``context`` repeats; None for a run of its own."""
    found: Manifest | None = context.meta.get(_LOCK_KEY)
    return found


def run_locked(command: Callable[..., None], context: typer.Context, path: Path) -> None:
    """Runs ``command`` with the options, the model and the data of a manifest.

    Inputs that the command line names take the place of the recorded ones, and have to have the same bytes.

    Raises:
        UsageError: the command line has other options than the manifest.
        InputError: versions, model or data differ from those of the manifest.
    """
    from qtool.llm.text_for_model import graph_of
    from qtool.manifest import read_manifest
    from qtool.workflows.diagnose.file_records import data_roles
    from qtool.workflows.quantize.lock import check_lock

    manifest = read_manifest(path)
    if manifest.command != context.info_name:
        raise UsageError(
            f"{path} is the manifest of `qtool {manifest.command}`",
            fix=f"run `qtool {manifest.command} --locked {path}`",
        )
    arguments = [str(argument) for argument in manifest.lock.get("arguments", ())]
    # Settings of the working folder are left aside: the manifest has those that counted.
    again = context.command.make_context(context.info_name, arguments, parent=context.parent, default_map={})
    _refuse_other_options(context, again.params)
    # The log has been opened already, and is no parameter of the command itself.
    kept = {name: value for name, value in context.params.items() if name in _NOT_RECORDED - _OF_THE_LOG}
    recorded = {name: value for name, value in again.params.items() if name not in _OF_THE_LOG}
    parameters = {**recorded, **kept, "locked": None}
    for name in ("model", "calib_stats"):
        if name in parameters and not _given(context, name):
            record = manifest.inputs.get(name)
            parameters[name] = None if record is None else record.path
    if not _given(context, "calib_data"):
        roles = data_roles(len(manifest.inputs))
        parameters["calib_data"] = [str(manifest.inputs[role].path) for role in roles if role in manifest.inputs]
    if parameters["output"] is None and parameters.get("output_dir") is None:
        parameters["output"] = manifest.quantized_model.path
    source = model_source(
        graph_of(model_path(parameters["model"])),
        parameters.get("factory"),
        parameters.get("model_kwargs"),
        parameters.get("input_shape"),
        trust(parameters.get("trust_pickle", False), parameters.get("allow_global")),
    )
    check_lock(manifest, source, parameters["calib_data"] or (), parameters.get("calib_stats"))
    again.meta[_LOCK_KEY] = manifest
    command(again, **parameters)


def _refuse_other_options(context: typer.Context, recorded: dict[str, Any]) -> None:
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in _NOT_RECORDED or not _given(context, name) or context.params[name] == recorded.get(name):
            continue
        was = recorded.get(name)
        raise UsageError(
            f"{parameter.opts[0]} is {_shown(context.params[name])} here, and {_shown(was)} in the manifest",
            fix=f"drop {parameter.opts[0]}, or run anew without --locked",
        )


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    return str(value.value if isinstance(value, Enum) else value)
