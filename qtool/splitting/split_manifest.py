"""The manifest of a split model: its parts in the order in which they run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qtool.errors import InputError

SCHEMA = "qtool.split/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFile:
    """One part.

    Attributes:
        file: its name, next to the manifest.
        kind: ``integers`` or ``floats``; None where parts are not divided by that.
        nodes: how many nodes it has.
        inputs: names of its inputs: inputs of the whole, or outputs of earlier parts.
        outputs: names of its outputs.
        sha256: the hash of the file.
    """

    file: str
    kind: str | None
    nodes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitManifest:
    """The parts of a split model, in order.

    Attributes:
        model: the name of the model that was split.
        inputs: names of its inputs.
        outputs: names of its outputs.
        parts: the parts, in order.
    """

    model: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: tuple[PartFile, ...]

    def write(self, path: Path) -> None:
        """Writes it as JSON."""
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, ensure_ascii=False)
        path.write_text(f"{text}\n", encoding="utf-8")


def read_split_manifest(path: Path) -> SplitManifest:
    """Reads a manifest.

    Raises:
        InputError: it is missing, is not a manifest, or names a file outside of its folder.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise KeyError("schema")
        manifest = SplitManifest(
            model=str(content["model"]),
            inputs=_names(content["inputs"]),
            outputs=_names(content["outputs"]),
            parts=tuple(_part(entry) for entry in content["parts"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a list of parts", fix="make it with `qtool split`") from error
    for part in manifest.parts:
        # Only names without folders: an untrusted manifest must not refer to other folders.
        if Path(part.file).name != part.file or not (path.parent / part.file).is_file():
            raise InputError(f"the part {part.file} is not next to {path}", fix="split the model again")
    return manifest


def _part(entry: dict[str, Any]) -> PartFile:
    return PartFile(
        file=str(entry["file"]),
        kind=None if entry["kind"] is None else str(entry["kind"]),
        nodes=int(entry["nodes"]),
        inputs=_names(entry["inputs"]),
        outputs=_names(entry["outputs"]),
        sha256=str(entry["sha256"]),
    )


def _names(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
