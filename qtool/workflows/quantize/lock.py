"""Reproducible runs: checks that inputs, versions and result match those of a manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qtool.backends.runtimes import RUNTIMES, runtime_named
from qtool.errors import InputError
from qtool.formats.torch.example_inputs import EXAMPLE_SEED
from qtool.manifest import FileRecord, Manifest
from qtool.reporting.surroundings import machine, versions
from qtool.workflows.convert.model_source import ModelSource
from qtool.workflows.diagnose.file_records import data_records, data_roles, file_record, model_record

# Packages that turn weights into a graph, which the bytes of the result depend on.
_EXPORTERS = ("torch", "onnx", "onnxscript")
_ROLES = {"model": "model", "calib_data": "data", "calib_stats": "statistics", "tokenizer": "tokenizer"}
_SHOWN_DIGITS = 12


def locked_versions(source: ModelSource) -> dict[str, str]:
    """Returns the versions of everything that the bytes made from ``source`` depend on."""
    found = versions()
    for name in () if source.is_graph else _EXPORTERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def lock_record(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the manifest entries for ``check_lock``, ``check_reproduced`` and the command line."""
    here = machine()
    return {
        "arguments": list(arguments),
        "seeds": {"example_inputs": EXAMPLE_SEED},
        "system": here.system,
        "processor": here.processor,
        "cores": here.cores,
    }


def check_lock(manifest: Manifest, source: ModelSource, data: Sequence[str], statistics: Path | None) -> None:
    """Raises an error, before anything runs, if inputs or versions differ from the manifest's.

    Raises:
        InputError: something differs; the problem lists everything that does.
        FormatError: the model is of no known format.
    """
    if "arguments" not in manifest.lock:
        raise InputError("the manifest is of a qtool that recorded no options", fix="run `qtool quantize` again")
    differences = []
    installed = locked_versions(source) if source.path.exists() else versions()
    packages = {"torch", *(runtime_named(name).package for name in RUNTIMES)}
    installed |= versions([name for name in manifest.versions if name in packages])
    for name, wanted in manifest.versions.items():
        here = installed.get(name, wanted)
        if here != wanted:
            differences.append(f"{name} is {here}, not {wanted}")
    given = {
        "model": model_record(source.path, source.path) if source.path.exists() else None,
        **data_records(data),
        "calib_stats": file_record(statistics, statistics) if statistics is not None and statistics.exists() else None,
    }
    tokenizer = manifest.inputs.get("tokenizer")
    if tokenizer is not None and tokenizer.path.exists():
        given["tokenizer"] = file_record(tokenizer.path, tokenizer.path)
    data_paths = dict(zip(data_roles(len(data)), data, strict=True))
    paths = {"model": source.path, **data_paths, "calib_stats": statistics}
    if tokenizer is not None:
        paths["tokenizer"] = tokenizer.path
    for role, record in manifest.inputs.items():
        title = f"the {_ROLES.get(role, _ROLES['calib_data'])} {paths.get(role)}"
        differences += _differences(title, record, given.get(role))
    differences += [f"the data {data_paths[role]} is new" for role in data_paths if role not in manifest.inputs]
    if differences:
        raise InputError(
            f"this is not the run of the manifest: {'; '.join(differences)}",
            fix="restore what differs, or run again without --locked",
        )


def _differences(title: str, recorded: FileRecord, given: FileRecord | None) -> list[str]:
    """Describes how a file, and those that hold its weights, differ from the recorded ones."""
    found = None if given is None else given.sha256
    differences = []
    if recorded.sha256 != found:
        state = "is missing" if given is None or found is None else f"has the hash {_form(given)}"
        differences.append(f"{title} {state}, not {_form(recorded)}")
    weights = {} if given is None else {_beside(part, given): part for part in given.weights}
    for part in recorded.weights if given is not None else ():
        name = _beside(part, recorded)
        differences += _differences(f"the file {name} with weights of {title}", part, weights.get(name))
    return differences


def _beside(part: FileRecord, model: FileRecord) -> str:
    return Path(os.path.relpath(part.path, model.path.parent)).as_posix()


def _form(record: FileRecord) -> str:
    if record.sha256 is None:
        return "none"
    size = "" if record.bytes is None else f" ({record.bytes:,} bytes)"
    return f"{record.sha256[:_SHOWN_DIGITS]}{size}"


def _hashes(record: FileRecord) -> list[str | None]:
    return [record.sha256, *(part.sha256 for part in record.weights)]


def check_reproduced(locked: Manifest | None, made: Manifest) -> None:
    """Raises an error if the result is not that of the manifest.

    Raises:
        InputError: the bytes differ.
    """
    if locked is None or _hashes(made.quantized_model) == _hashes(locked.quantized_model):
        return
    reasons = [
        f"{name} is '{made.lock[name]}', not '{locked.lock.get(name)}'"
        for name in ("system", "processor", "cores", "seeds")
        if made.lock[name] != locked.lock.get(name)
    ]
    if _hashes(locked.float_model) != _hashes(made.float_model):
        reasons.append("the exported float model differs")
    if any(record.sha256 is None for record in locked.inputs.values()):
        reasons.append("samples come from a function, which has no hash")
    options = locked.options
    if options.get("goal") or options.get("time_budget_s") is not None:
        reasons.append("layers to keep float were chosen by measured times")
    for run, manifest in (("the search of the manifest", locked), ("this search", made)):
        ended = manifest.lock.get("search_ended")
        if ended is not None:
            reasons.append(str(ended).replace("the search", run, 1))
    told = "; ".join(reasons) or "no cause is known"
    raise InputError(
        f"the result has the hash {_form(made.quantized_model)}, not {_form(locked.quantized_model)}: {told}",
        fix="nothing was written; use the machine of the manifest, or run again without --locked",
    )
