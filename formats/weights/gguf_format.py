"""The format of ``.gguf`` files."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from qtool.formats.base import Weights
from qtool.formats.candidate import Candidate, Recognized
from qtool.formats.errors import FormatError
from qtool.formats.findings import AuditNotes, Risk
from qtool.formats.trust import NO_TRUST, Trust
from qtool.formats.weights.gguf_header import GGUF_HEAD, GgufHeader, read_gguf_header

_LONGEST_NAME = 40


class GgufFile:
    """Reads the weights of llama.cpp's models, quantized ones as float32."""

    holds: ClassVar[Literal["weights"]] = "weights"

    def recognize(self, file: Candidate) -> Recognized | None:
        """Recognizes files by their first four bytes."""
        if not file.head.startswith(GGUF_HEAD):
            return None
        try:
            header = _checked(file.path)
        except FormatError as error:
            return Recognized("GGUF", damage=error)
        return Recognized(_described(header))

    def audit(self, path: Path, notes: AuditNotes) -> None:
        """Notes a header that does not fit the file; there is nothing in it that could be run."""
        try:
            _checked(path)
        except FormatError as error:
            notes.add(Risk.INCONSISTENT, "header", error.problem)

    def read(self, path: Path, trust: Trust = NO_TRUST) -> Weights:
        """Reads the header; tensors stay in the file until they are asked for.

        Raises:
            FormatError: the file is damaged, or of another version or byte order.
        """
        from qtool.formats.weights.gguf_file import read_gguf

        contents = read_gguf(path)
        texts = {key: value for key, value in contents.fields.items() if isinstance(value, str | int | float)}
        return Weights(
            tensors=contents.tensors,
            metadata={key: str(value) for key, value in texts.items()},
            source=f"{len(contents.tensors)} tensors",
        )


def _checked(path: Path) -> GgufHeader:
    header = read_gguf_header(path)
    if not header.entries:
        raise FormatError(f"{path} is a GGUF file without tensors", fix="download or convert the model again")
    return header


def _described(header: GgufHeader) -> str:
    name = header.fields.get("general.architecture")
    known = isinstance(name, str) and name.isprintable() and 0 < len(name) <= _LONGEST_NAME
    return f"GGUF {header.version}{f', {name}' if known else ''}"
