"""Finds the format of a file by its content; never unpickles anything and never trusts the suffix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qtool.formats import registry
from qtool.formats.candidate import Candidate, Recognized
from qtool.formats.other_files import not_a_model


@dataclass(frozen=True, slots=True)
class Detection:
    """The format of a file.

    Attributes:
        format: the key in ``qtool.formats.registry.FORMATS`` or ``SOURCES``.
        detail: the same in words, such as ``"ONNX, IR version 8"``.
    """

    format: str
    detail: str


def detect(path: Path) -> Detection:
    """Returns the format of the file or folder ``path``.

    Raises:
        FormatError: there is no such file, or it is empty, truncated, or of no format.
    """
    file = Candidate.at(path)
    recognized = recognize(file)
    if recognized is None:
        raise not_a_model(file)
    name, found = recognized
    if found.damage is not None:
        raise found.damage
    return Detection(name, found.kind)


def recognize(file: Candidate) -> tuple[str, Recognized] | None:
    """Returns the name of the first format that recognizes ``file``, and what it says of it; None where none does.

    Raises:
        FormatError: it is a zip file whose directory cannot be read.
    """
    for name in registry.names():
        found = registry.load_source(name).recognize(file)
        if found is not None:
            return name, found
    return None
