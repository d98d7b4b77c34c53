"""Repeats a quantization from its manifest: what has to be the same, and what to say where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from formats.example_inputs import EXAMPLE_SEED
from qtool.errors import InputError
from qtool.fingerprint import data_sha256, file_sha256
from qtool.manifest import Manifest
from qtool.report.surroundings import machine, versions
from qtool.workflows.model_source import ModelSource

# What makes a graph of weights, and so decides about the bytes.
_EXPORTERS = ("torch", "onnx", "onnxscript")
_ROLES = {"model": "model", "calib_data": "data", "calib_stats": "statistics"}
_SHOWN_DIGITS = 12


def locked_versions(source: ModelSource) -> dict[str, str]:
    """Returns the versions of all that decides about the bytes of what is made from ``source``."""
    found = versions()
    for name in () if source.is_graph else _EXPORTERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def lock_record(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns what a manifest holds for ``check_lock``, ``check_reproduced`` and the command line."""
    here = machine()
    return {
        "arguments": list(arguments),
        "seeds": {"example_inputs": EXAMPLE_SEED},
        "system": here.system,
        "processor": here.processor,
        "cores": here.cores,
    }


def check_lock(manifest: Manifest, source: ModelSource, data: str | None, statistics: Path | None) -> None:
    """Refuses, before anything runs, to repeat a run with other inputs or versions.

    Raises:
        InputError: something differs; the problem names everything that does.
        FormatError: the model is of no known format.
    """
    if "arguments" not in manifest.lock:
        raise InputError("the manifest is of a qtool that recorded no options", fix="run `qtool quantize` anew")
    differences = []
    installed = locked_versions(source) if source.path.exists() else versions()
    for name, wanted in manifest.versions.items():
        here = installed.get(name, wanted)
        if here != wanted:
            differences.append(f"{name} is {here}, not {wanted}")
    given = {
        "model": file_sha256(source.path) if source.path.exists() else None,
        "calib_data": None if data is None else data_sha256(data),
        "calib_stats": file_sha256(statistics) if statistics is not None and statistics.exists() else None,
    }
    paths = {"model": source.path, "calib_data": data, "calib_stats": statistics}
    for role, record in manifest.inputs.items():
        if record.sha256 != given[role]:
            found = given[role]
            state = "is missing" if found is None else f"has the hash {found[:_SHOWN_DIGITS]}"
            wanted = "none" if record.sha256 is None else record.sha256[:_SHOWN_DIGITS]
            differences.append(f"the {_ROLES[role]} {paths[role]} {state}, not {wanted}")
    if differences:
        raise InputError(
            f"this is not the run of the manifest: {'; '.join(differences)}",
            fix="bring back what differs, or quantize anew without --locked",
        )


def check_reproduced(locked: Manifest | None, made: Manifest) -> None:
    """Refuses a result that is not the one of the manifest it was to repeat.

    Raises:
        InputError: the bytes differ.
    """
    if locked is None or made.quantized_model.sha256 == locked.quantized_model.sha256:
        return
    reasons = [
        f"{name} is '{made.lock[name]}', not '{locked.lock.get(name)}'"
        for name in ("system", "processor", "cores", "seeds")
        if made.lock[name] != locked.lock.get(name)
    ]
    if locked.float_model.sha256 != made.float_model.sha256:
        reasons.append("the float model made on the way differs")
    if any(record.sha256 is None for record in locked.inputs.values()):
        reasons.append("samples come from a function, which has no hash")
    options = locked.options
    if options.get("goal") or options.get("time_budget_s") is not None:
        reasons.append("layers to keep float were chosen by measured times")
    wanted, found = (str(entry.quantized_model.sha256)[:_SHOWN_DIGITS] for entry in (locked, made))
    raise InputError(
        f"the result has the hash {found}, not {wanted}: {'; '.join(reasons) or 'nothing else is known to differ'}",
        fix="nothing was written; use the machine of the manifest, or quantize anew without --locked",
    )
