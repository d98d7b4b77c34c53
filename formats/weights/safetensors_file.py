"""The format of ``.safetensors`` files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from qtool.formats.base import Weights
from qtool.formats.candidate import Candidate, Recognized
from qtool.formats.errors import FormatError
from qtool.formats.findings import AuditNotes, Risk
from qtool.formats.trust import NO_TRUST, Trust
from qtool.formats.weights.safetensors_header import announced_header_bytes, read_header

if TYPE_CHECKING:
    from qtool.formats.base import Change


class SafetensorsFile:
    """Stores weights as ``.safetensors``.

    Tied tensors are stored under each of their names, so that every reader finds every key; the metadata's entry
    ``tied`` says which are one, and reading ties them again.
    """

    holds: ClassVar[Literal["weights"]] = "weights"
    suffix: ClassVar[str] = ".safetensors"

    def recognize(self, file: Candidate) -> Recognized | None:
        """Recognizes files that begin with the length of a JSON object, and its first character."""
        if announced_header_bytes(file.head) is None:
            return None
        return Recognized("safetensors", damage=_damage(file.path))

    def audit(self, path: Path, notes: AuditNotes) -> None:
        """Notes a header that does not fit the file; there is nothing in it that could be run."""
        damage = _damage(path)
        if damage is not None:
            notes.add(Risk.INCONSISTENT, "header", damage.problem)

    def read(self, path: Path, trust: Trust = NO_TRUST) -> Weights:
        """Maps the tensors; they stay in the file until they are used. There is nothing in it that could be run.

        Raises:
            FormatError: the file is damaged or holds no tensors.
        """
        from qtool.formats.weights.safetensors_tensors import read_tensors

        return read_tensors(path)

    def write(self, weights: Weights, path: Path, change: Change | None = None) -> None:
        """Writes one tensor after the other; the same weights give the same bytes.

        Args:
            weights: the tensors.
            path: where they go.
            change: gives what is written instead of a tensor, in the same shape and type, in blocks of rows;
                called once for each, when its turn comes, so that no more than one block need be in memory.

        Raises:
            FormatError: a tensor is sparse, nested, quantized by torch, without values, of an element type that the
                format lacks, or has the name of its metadata.
        """
        from qtool.formats.weights.safetensors_tensors import write_tensors

        write_tensors(weights, path, change)


def _damage(path: Path) -> FormatError | None:
    try:
        read_header(path)
    except FormatError as error:
        return error
    return None
