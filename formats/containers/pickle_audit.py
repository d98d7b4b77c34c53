"""Audits files that are one pickle after the other, as torch.save wrote them before version 1.6."""

from __future__ import annotations

from pathlib import Path

from qtool.formats.candidate import Candidate
from qtool.formats.containers.pickle_scan import PICKLE_HEADS, scan_pickle
from qtool.formats.findings import AuditNotes

# The magic number of torch.save before version 1.6, pickled as a long of ten bytes.
_LEGACY_TORCH_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
_MAGIC_WITHIN_BYTES = 32
# What follows the fifth pickle of such a checkpoint are the tensors' bytes.
_LEGACY_PICKLES = 5
_MOST_PICKLES = 16


def is_legacy_checkpoint(head: bytes) -> bool:
    """Returns whether a file that begins with ``head`` was written by torch.save before torch 1.6."""
    return head.startswith(PICKLE_HEADS) and _LEGACY_TORCH_MAGIC in head[:_MAGIC_WITHIN_BYTES]


def is_pickle(file: Candidate) -> bool:
    """Returns whether a file is a pickle; those of the first protocols, without magic bytes, only if they would act."""
    if file.path.is_dir() or file.is_zip:
        return False
    if file.head.startswith(PICKLE_HEADS):
        return True
    with file.path.open("rb") as stream:
        return scan_pickle(stream, 0, file.nbytes).runs_something


def audit_pickles(path: Path, notes: AuditNotes) -> None:
    """Notes what opening one pickle after the other would do."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        legacy = is_legacy_checkpoint(stream.read(_MAGIC_WITHIN_BYTES))
        position = 0
        for number in range(_LEGACY_PICKLES if legacy else _MOST_PICKLES):
            scan = scan_pickle(stream, position, size)
            notes.add_pickle(f"pickle {number + 1}", scan)
            position = scan.end
            if scan.problem is not None or position >= size:
                break
