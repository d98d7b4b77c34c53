"""The manifest of one quantization, written next to its result: inputs, options and outputs.

It holds no time and no absolute path where a relative one will do, so that the same run writes the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtool.errors import InputError

SCHEMA = "qtool.manifest/1"
SUFFIX = ".manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of a run.

    Attributes:
        path: where it is.
        sha256: of its bytes, in hex; None for data that a function makes.
        bytes: its size; None where the hash is None.
        weights: of a model, the files beside it that hold its weights.
    """

    path: Path
    sha256: str | None
    bytes: int | None
    weights: tuple[FileRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What is known about one run.

    Attributes:
        command: the command that ran.
        float_model: the float model that the result is to be compared with.
        quantized_model: the result.
        inputs: by role (model, calib_data, calib_stats): what was read.
        options: every option as it was resolved.
        versions: of qtool and of the libraries that decide about the result.
        quantized: what was quantized, and how much of it runs on integers.
        figures: what was measured.
        lock: what else it takes to make the same bytes again: the options as they were given, seeds, and the machine.
    """

    command: str
    float_model: FileRecord
    quantized_model: FileRecord
    inputs: Mapping[str, FileRecord]
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    quantized: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float | None] = field(default_factory=dict)
    lock: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> str | None:
        """The calibration data, as it can be given to ``--data``; None when statistics were given instead."""
        record = self.inputs.get("calib_data")
        return None if record is None else str(record.path)


def manifest_path(model: Path) -> Path:
    """Returns where the manifest of a quantized model stands."""
    return model.with_suffix(SUFFIX)


def write_manifest(path: Path, manifest: Manifest, *, home: Path) -> None:
    """Writes ``manifest`` to ``path``; paths in it are relative to ``home``, the folder where it will stand."""

    def record(entry: FileRecord) -> dict[str, Any]:
        plain = {"path": _relative(entry.path, home), "sha256": entry.sha256, "bytes": entry.bytes}
        return {**plain, "weights": [record(part) for part in entry.weights]} if entry.weights else plain

    document = {
        "schema": SCHEMA,
        "command": manifest.command,
        "float_model": record(manifest.float_model),
        "quantized_model": record(manifest.quantized_model),
        "inputs": {role: record(entry) for role, entry in manifest.inputs.items()},
        "options": dict(manifest.options),
        "versions": dict(manifest.versions),
        "quantized": dict(manifest.quantized),
        "figures": dict(manifest.figures),
        "lock": dict(manifest.lock),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest; its paths come back relative to the working folder.

    Raises:
        InputError: it is not a manifest of a supported version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise InputError(
                f"{path} has the schema {document['schema']}, this qtool reads {SCHEMA}",
                fix="run `qtool quantize` again",
            )

        def record(entry: Mapping[str, Any]) -> FileRecord:
            return FileRecord(
                path=_found(path.parent, entry["path"]),
                sha256=entry["sha256"],
                bytes=entry["bytes"],
                weights=tuple(record(part) for part in entry.get("weights", ())),
            )

        return Manifest(
            command=document["command"],
            float_model=record(document["float_model"]),
            quantized_model=record(document["quantized_model"]),
            inputs={role: record(entry) for role, entry in document["inputs"].items()},
            options=document["options"],
            versions=document["versions"],
            quantized=document["quantized"],
            figures=document["figures"],
            lock=document.get("lock", {}),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a whole manifest", fix="run `qtool quantize` again") from error


def newest_manifest(folder: Path) -> Manifest | None:
    """Returns the manifest in ``folder`` that was written last, or None when there is none."""
    found = [(path.stat().st_mtime_ns, path.name, path) for path in folder.glob(f"*{SUFFIX}")]
    return read_manifest(max(found)[2]) if found else None


def _relative(path: Path, home: Path) -> str:
    """Writes a path relative to ``home``, with forward slashes; on another drive of Windows it stays absolute."""
    if ":" in path.name:
        return str(path)  # pkg.module:function
    try:
        return Path(os.path.relpath(path, home)).as_posix()
    except ValueError:
        return path.as_posix()


def _found(home: Path, text: str) -> Path:
    if ":" in Path(text).name:
        return Path(text)
    return Path(os.path.normpath(home / text))
