"""Audits torch's zip files: their layout, pickles, code and sizes."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from qtool.formats.containers.pickle_scan import PICKLE_HEADS, PickleScan, StoredBytes, scan_pickle
from qtool.formats.containers.zip_layout import (
    LOCAL_MAGIC,
    Defect,
    first_bytes,
    open_zip,
    read_member,
    unpacked,
    zip_defects,
)
from qtool.formats.errors import FormatError
from qtool.formats.findings import AuditNotes, Risk
from qtool.formats.torch.exported_program_audit import audit_program_json
from qtool.formats.torch.torch_zip import TorchZip, ZipKind, torch_zip

_LARGEST_PICKLE_BYTES = 256 << 20
_LARGEST_TEXT_BYTES = 64 << 20
_DEEPEST_NESTING = 3
# Tensors, by torch's names; their bytes may look like anything.
_RAW = re.compile(r"(data|constants|traced_inputs|data/weights|data/constants)/(\w+_)?\d+")
# TorchScript's own reader takes types from the program in the file; it never looks in Python for them.
_SCRIPT_TYPES = ("__torch__.", "torch.jit._pickle.")
_SCRIPT_FILE_ACCESS = re.compile(rb"\b(torch|ops\.aten)\.(save|load|from_file)\(")
_ELEMENT_BYTES = {
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    "ComplexDouble": 16,
}


def audit_zip(path: Path, notes: AuditNotes) -> None:
    """Notes all that is wrong with a zip file.

    Raises:
        FormatError: its directory cannot be read.
    """
    with open_zip(path) as archive, path.open("rb") as stream:
        _audit(archive, stream, path.stat().st_size, "", notes, 0)


def _audit(archive: zipfile.ZipFile, stream: IO[bytes], size: int, prefix: str, notes: AuditNotes, depth: int) -> None:
    defects = zip_defects(archive, stream, size)
    for defect in defects:
        risk = Risk.REACHES_OUTSIDE if defect.kind is Defect.OUTSIDE else Risk.INCONSISTENT
        notes.add(risk, prefix + defect.member, defect.reason)
    broken = {defect.member for defect in defects}
    found = torch_zip(archive.namelist())
    for member in archive.infolist():
        if member.orig_filename in broken or member.is_dir():
            continue
        try:
            _audit_member(archive, member, found, prefix, notes, depth)
        except FormatError as error:
            notes.add(Risk.INCONSISTENT, prefix + member.filename, error.problem)


def _audit_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, found: TorchZip, prefix: str, notes: AuditNotes, depth: int
) -> None:
    name, where = member.filename.removeprefix(f"{found.root}/"), prefix + member.filename
    if name.endswith((".so", ".dll", ".dylib", ".pyd", ".o")):
        notes.add(Risk.RUNS_CODE, where, "is a library of machine code")
    if found.kind is not ZipKind.OTHER and _RAW.fullmatch(name):
        return
    head = first_bytes(archive, member, len(LOCAL_MAGIC))
    if head == LOCAL_MAGIC:
        _audit_inner(archive, member, where, notes, depth)
    elif name.endswith((".pkl", ".debug_pkl")) or head.startswith(PICKLE_HEADS):
        scan = _scan(read_member(archive, member, limit=_LARGEST_PICKLE_BYTES))
        if scan.problem is None or scan.foreign or name.endswith("pkl"):
            notes.add_pickle(where, scan, harmless=_SCRIPT_TYPES if found.kind is ZipKind.TORCHSCRIPT else ())
        if name == "data.pkl":
            _check_storages(archive, scan.storages, found, where, notes)
    elif _has_old_pickle(archive, member):
        notes.add_pickle(where, _scan(read_member(archive, member, limit=_LARGEST_PICKLE_BYTES)))
    elif found.kind is ZipKind.TORCHSCRIPT and name.startswith("code/"):
        code = read_member(archive, member, limit=_LARGEST_TEXT_BYTES)
        for match in dict.fromkeys(_SCRIPT_FILE_ACCESS.findall(code)):
            notes.add(Risk.REACHES_OUTSIDE, where, f"calls {b'.'.join(match).decode()}, which reads or writes files")
    elif found.kind is ZipKind.EXPORTED and name.endswith(".json"):
        audit_program_json(read_member(archive, member, limit=_LARGEST_TEXT_BYTES), where, notes)


def _audit_inner(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str, notes: AuditNotes, depth: int) -> None:
    if depth >= _DEEPEST_NESTING:
        raise FormatError("is nested in too many zip files", fix="unpack them by hand")
    content = read_member(archive, member, limit=_LARGEST_PICKLE_BYTES)
    stream = io.BytesIO(content)
    with open_zip(stream, where) as inner:
        _audit(inner, stream, len(content), f"{where}:", notes, depth + 1)


def _has_old_pickle(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    """Returns whether a member is a pickle of the first protocols; nothing but what they do tells these."""
    with unpacked(archive, member) as stream:
        scan = scan_pickle(stream, 0, member.file_size)
    return scan.runs_something


def _scan(content: bytes) -> PickleScan:
    return scan_pickle(io.BytesIO(content), 0, len(content))


def _check_storages(
    archive: zipfile.ZipFile, storages: Iterable[StoredBytes], found: TorchZip, where: str, notes: AuditNotes
) -> None:
    """Compares the lengths that a pickle gives for its tensors' data with those of the members."""
    sizes = {member.filename: member.file_size for member in archive.infolist()}
    for stored in storages:
        kind = stored.storage.removeprefix("torch.").removesuffix("Storage")
        nbytes = stored.elements * _ELEMENT_BYTES.get(kind, 1)
        held = sizes.get(f"{found.root}/data/{stored.key}")
        if held is None:
            notes.add(Risk.INCONSISTENT, where, f"takes its data from 'data/{stored.key[:80]}', which is not there")
        elif not 0 <= nbytes <= held:
            notes.add(
                Risk.INCONSISTENT,
                where,
                f"takes {nbytes:,} bytes from 'data/{stored.key}', which has {held:,}",
            )
