"""Describes what opening a model file would run and reach, without opening it."""

from __future__ import annotations

from pathlib import Path

from qtool.formats import registry
from qtool.formats.candidate import Candidate
from qtool.formats.containers.pickle_audit import audit_pickles, is_pickle
from qtool.formats.detect import recognize
from qtool.formats.findings import AuditNotes, FileAudit
from qtool.formats.other_files import not_a_model
from qtool.formats.torch.torch_zip_audit import audit_zip


def audit(path: Path) -> FileAudit:
    """Audits ``path`` and returns what opening it would do; nothing in it is run or unpacked to disk.

    Raises:
        FormatError: there is no such file, it is empty, of no format, or so damaged that nothing can be said of it.
    """
    notes = AuditNotes()
    file = Candidate.at(path)
    recognized = recognize(file)
    if recognized is not None:
        name, found = recognized
        registry.load_source(name).audit(path, notes)
        if found.damage is not None and not notes.findings:
            raise found.damage
        return notes.audit(path, found.kind)
    # Pickles and zip files do harm whether there is a model in them or not.
    if is_pickle(file):
        audit_pickles(path, notes)
        return notes.audit(path, "Python pickle")
    if file.is_zip:
        audit_zip(path, notes)
    if notes.findings:
        return notes.audit(path, "zip file")
    raise not_a_model(file)
