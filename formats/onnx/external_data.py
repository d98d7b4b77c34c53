"""Checks the locations of external data in ONNX models before anything is read from there.

Source: https://onnx.ai/onnx/repo-docs/ExternalData.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qtool.formats.errors import FormatError

# No file system supports longer names.
_LONGEST_NAME = 255


class OutsideError(FormatError):
    """A tensor's location is outside of the model's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Where the weights of a graph are stored.

    Attributes:
        external: whether they go into external files even if one file could hold all.
        max_shard_bytes: the largest such file; None for one file, however large.
    """

    external: bool = False
    max_shard_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The declared location of a tensor.

    Attributes:
        tensor: its name.
        location: the file, relative to the model.
        offset: where its bytes begin there.
        length: the declared number of bytes; None where it is not declared.
        nbytes: the number of bytes that its shape and element type need.
    """

    tensor: str
    location: str
    offset: int
    length: int | None
    nbytes: int


def claim_from_entries(tensor: str, entries: Mapping[str, str], nbytes: int) -> Claim:
    """Returns the claim in a tensor's ``external_data`` entries.

    Raises:
        FormatError: an entry is missing or is no number.
    """
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries["length"]) if entries.get("length") else None
    except ValueError as error:
        raise _refused(tensor, "has a location in the data file that is not a number") from error
    return Claim(tensor=tensor, location=entries.get("location", ""), offset=offset, length=length, nbytes=nbytes)


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that may hold weights.

    Attributes:
        path: where the model says it is.
        real: the same, links resolved.
        size: its bytes.
    """

    path: Path
    real: Path
    size: int


def check_claim(claim: Claim, model: Path, known: dict[str, DataFile] | None = None) -> Path:
    """Returns the data file, links resolved, if it is in the model's folder or below.

    A link may lead elsewhere only into the folder where the model's own link leads, as in the cache of Hugging Face.
    ``known`` keeps the files by location, of which every tensor names one.

    Raises:
        FormatError: there is no such file, or it is too short.
        OutsideError: the location leads elsewhere, to no file, or to one that has other names too.
    """
    known = {} if known is None else known
    file = known.get(claim.location) or _data_file(claim, model)
    known[claim.location] = file
    if claim.length is not None and claim.length != claim.nbytes:
        raise _refused(claim.tensor, f"claims {claim.length:,} bytes where its shape needs {claim.nbytes:,}")
    if claim.offset < 0 or claim.offset + claim.nbytes > file.size:
        raise FormatError(
            f"the data file {file.path} has {file.size:,} bytes, but tensor '{claim.tensor}' of {model} ends at byte "
            f"{claim.offset + claim.nbytes:,}",
            fix="it was truncated, or belongs to another model: copy it again",
        )
    return file.real


def _data_file(claim: Claim, model: Path) -> DataFile:
    location = claim.location
    if not location:
        raise _refused(claim.tensor, "does not say in which file its data is")
    parts = location.split("/")
    if "\0" in location or "\\" in location or ":" in parts[0] or location.startswith("/") or ".." in parts:
        raise _outside(claim.tensor, f"points outside of the model's folder: {location!r}")
    if any(len(part) > _LONGEST_NAME for part in parts):
        raise _refused(claim.tensor, f"names a data file of {len(location):,} characters, which no system supports")
    path = model.parent / location
    real = _resolved(path, claim)
    allowed = (model.parent.resolve(), model.resolve().parent)
    if not any(real.is_relative_to(folder) for folder in allowed):
        raise _outside(claim.tensor, f"points outside of the model's folder through a link: {location!r}")
    if not path.exists():
        raise FormatError(
            f"the data file {path} of {model} is missing (tensor '{claim.tensor}' is in it)",
            fix="copy it next to the model, under the same name",
        )
    if not path.is_file():
        raise _outside(claim.tensor, f"points at something that is not a file: {location!r}")
    # The user named the model's own file, so its other hard links do not matter.
    if path.stat().st_nlink > 1 and real != model.resolve():
        raise OutsideError(
            f"tensor '{claim.tensor}' points at a file with several hard links, maybe from outside: {location!r}",
            fix=f"where you trust it, replace it by a copy: cp {location} copy && mv copy {location}",
        )
    return DataFile(path, real, path.stat().st_size)


def _resolved(path: Path, claim: Claim) -> Path:
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:  # the latter is what Python before 3.13 raises
        raise _outside(claim.tensor, f"points at a broken link: {claim.location!r}") from error
    # A circle of links has no end; Python 3.13 returns one of them.
    if real.is_symlink():
        raise _outside(claim.tensor, f"points at a broken link: {claim.location!r}")
    return real


def _outside(tensor: str, reason: str) -> OutsideError:
    return OutsideError(
        f"tensor '{tensor}' {reason}", fix="do not use this file unless you trust it; export the model again"
    )


def _refused(tensor: str, reason: str) -> FormatError:
    return FormatError(
        f"tensor '{tensor}' {reason}", fix="do not use this file unless you trust it; export the model again"
    )
