"""The format of the programs that torch.export stores."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from qtool.formats.base import Weights
from qtool.formats.candidate import Candidate, Recognized
from qtool.formats.findings import AuditNotes
from qtool.formats.torch.torch_zip import ZipKind, torch_zip
from qtool.formats.torch.torch_zip_audit import audit_zip
from qtool.formats.trust import NO_TRUST, Trust, check_trusted


class ExportedProgramFile:
    """Reads ``.pt2`` files."""

    holds: ClassVar[Literal["program"]] = "program"

    def recognize(self, file: Candidate) -> Recognized | None:
        """Recognizes zip files with the graph of a program."""
        if torch_zip(file.members).kind is not ZipKind.EXPORTED:
            return None
        return Recognized("torch.export file", damage=file.zip_damage)

    def audit(self, path: Path, notes: AuditNotes) -> None:
        """Notes pickles and programs in it that run code, and what in the zip file does not add up.

        Raises:
            FormatError: the zip file's directory cannot be read.
        """
        audit_zip(path, notes)

    def read(self, path: Path, trust: Trust = NO_TRUST) -> Weights:
        """Reads the program, its weights and the shapes that it was exported for.

        Raises:
            FormatError: the file is damaged, or would do more than ``trust`` allows.
        """
        from qtool.formats.torch.exported_program import read_exported_program

        notes = AuditNotes()
        self.audit(path, notes)
        check_trusted(notes, path, trust)
        return read_exported_program(path)
