"""Describes what opening a model file would run and reach, without opening it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qtool.formats import detect as detection
from qtool.formats.errors import FormatError
from qtool.formats.findings import AuditNotes, FileAudit, Risk
from qtool.formats.onnx.external_data import OutsideError
from qtool.formats.registry import recognizable
from qtool.formats.tensorflow.tensorflow_audit import note_tensorflow
from qtool.formats.tensorflow.tensorflow_kinds import KERAS, TENSORFLOW_FORMATS, is_keras
from qtool.formats.torch.pickle_globals import Meaning
from qtool.formats.torch.pickle_scan import scan_pickle
from qtool.formats.torch.torch_zip import ZipKind
from qtool.formats.torch.torch_zip_audit import audit_zip
from qtool.formats.weights.safetensors_header import announced_header_bytes, read_header
from qtool.formats.weights.sharded_index import is_index, read_index

_HEAD_BYTES = 4096
_MOST_PICKLES = 16
_PICKLE_HEADS = tuple(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5))


def audit(path: Path) -> FileAudit:
    """Audits ``path`` and returns what opening it would do; nothing in it is run or unpacked to disk.

    Raises:
        FormatError: there is no such file, it is empty or a folder, or not a known model file.
    """
    notes = AuditNotes()
    if path.is_dir():
        return _audited_other(path, notes)
    head = detection.read_head(path)
    if is_index(path, head):
        return _audited_index(path, notes)
    if head.startswith((b"PK", *_PICKLE_HEADS)):
        kind = note_torch_file(path, notes)
        # Keras writes zip files too.
        if kind == ZipKind.OTHER and is_keras(path):
            _audit_keras(path, notes)
            return notes.audit(path, "Keras model")
        return _audited_other(path, notes) if kind == ZipKind.OTHER and not notes.findings else notes.audit(path, kind)
    if announced_header_bytes(head) is not None:
        return _audited_header(path, notes)
    if _is_old_pickle(path):
        return notes.audit(path, _audit_pickles(path, head, notes))
    return _audited_other(path, notes)


def _is_old_pickle(path: Path) -> bool:
    """Returns whether a file is a pickle of the first protocols, which have no magic bytes."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        return scan_pickle(stream, 0, size).runs_something


def _audited_other(path: Path, notes: AuditNotes) -> FileAudit:
    """Audits files of formats other than those of torch and safetensors."""
    found = detection.detect(path)
    if found.format == "onnx":
        _audit_onnx(path, notes)
    elif found.format in TENSORFLOW_FORMATS:
        note_tensorflow(path, found.format, notes)
    else:
        for known in (known for name, known in recognizable() if name == found.format):
            known.audit(path, notes)
    return notes.audit(path, found.detail)


def _audit_keras(path: Path, notes: AuditNotes) -> None:
    try:
        note_tensorflow(path, KERAS, notes)
    except FormatError:
        # A damaged file that is also harmful is reported as harmful.
        if not notes.findings:
            raise


def is_zip(path: Path) -> bool:
    """Returns whether a file begins like a zip file, which is what torch goes by."""
    return detection.read_head(path).startswith(b"PK")


def note_torch_file(path: Path, notes: AuditNotes) -> str:
    """Notes what opening a zip file or a sequence of pickles would do, and returns the kind of the file.

    Raises:
        FormatError: the zip file's directory cannot be read.
    """
    head = detection.read_head(path)
    return audit_zip(path, notes) if head.startswith(b"PK") else _audit_pickles(path, head, notes)


def _audit_pickles(path: Path, head: bytes, notes: AuditNotes) -> str:
    """Follows one pickle after the other, as torch.save wrote them before version 1.6."""
    legacy = detection.is_legacy_checkpoint(head)
    size = path.stat().st_size
    with path.open("rb") as stream:
        position = 0
        # What follows the fifth pickle of an old checkpoint are the tensors' bytes.
        for number in range(5 if legacy else _MOST_PICKLES):
            scan = scan_pickle(stream, position, size)
            notes.add_pickle(f"pickle {number + 1}", scan)
            position = scan.end
            if scan.problem is not None or position >= size:
                break
    return "torch checkpoint of the format before torch 1.6" if legacy else "Python pickle"


def _audited_header(path: Path, notes: AuditNotes) -> FileAudit:
    try:
        read_header(path)
    except FormatError as error:
        notes.add(Risk.INCONSISTENT, "header", error.problem)
    return notes.audit(path, "safetensors")


def _audited_index(path: Path, notes: AuditNotes) -> FileAudit:
    """Looks through every file that the index names."""
    try:
        shards = list(read_index(path).shards)
    except OutsideError as error:
        notes.add(Risk.REACHES_OUTSIDE, path.name, error.problem)
        shards = []
    for shard in shards:
        notes.files.append(shard.name)
        found = audit(shard)
        notes.calls += found.calls
        notes.imports |= dict.fromkeys(found.imports, Meaning.OBJECT)
        notes.findings += [replace(finding, where=f"{shard.name}: {finding.where}") for finding in found.findings]
    return notes.audit(path, "sharded weights")


def _audit_onnx(path: Path, notes: AuditNotes) -> None:
    from qtool.formats.onnx.onnx_file import audit_external_data

    audit_external_data(path, notes)
