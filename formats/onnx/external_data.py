"""Checks where ONNX models say that their weights are, before anything is read from there.

Source: https://onnx.ai/onnx/repo-docs/ExternalData.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qtool.formats.errors import FormatError

# Longer names have no place in any file system.
_LONGEST_NAME = 255


class OutsideError(FormatError):
    """A tensor is said to be where the model must not point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Says where the weights of a graph are kept.

    Attributes:
        external: whether they go into files beside the graph even if one file could hold all.
        max_shard_bytes: the largest such file; None for one file, however large.
    """

    external: bool = False
    max_shard_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a tensor says about its place.

    Attributes:
        tensor: its name.
        location: the file, relative to the model.
        offset: where its bytes begin there.
        length: how many bytes it says it has there; None where it says nothing.
        nbytes: how many its shape and element type need.
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
        raise _refused(tensor, "gives no number as its place in the data file") from error
    return Claim(tensor=tensor, location=entries.get("location", ""), offset=offset, length=length, nbytes=nbytes)


def check_claim(claim: Claim, model: Path) -> Path:
    """Returns the data file, links resolved, if it lies where the model may point: beside the model or below.

    A link may lead elsewhere only into the folder where the model's own link leads, as in the cache of Hugging Face.

    Raises:
        FormatError: there is no such file, or it is too short.
        OutsideError: the location leads elsewhere, to no file, or to one that has other names too.
    """
    location = claim.location
    if not location:
        raise _refused(claim.tensor, "does not say in which file its data is")
    parts = location.split("/")
    if "\0" in location or "\\" in location or ":" in parts[0] or location.startswith("/") or ".." in parts:
        raise _outside(claim.tensor, f"points outside of the model's folder: {location!r}")
    if any(len(part) > _LONGEST_NAME for part in parts):
        raise _refused(claim.tensor, f"names a data file of {len(location):,} characters, which no system has")
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
        raise _outside(claim.tensor, f"points at something that is no file: {location!r}")
    # The model's own file is what the user named, whatever other names it has.
    if path.stat().st_nlink > 1 and real != model.resolve():
        raise OutsideError(
            f"tensor '{claim.tensor}' points at a file with several names, of which some may lie outside: {location!r}",
            fix=f"where you trust it, make it a file of its own: cp {location} copy && mv copy {location}",
        )
    if claim.length is not None and claim.length != claim.nbytes:
        raise _refused(claim.tensor, f"claims {claim.length:,} bytes where its shape needs {claim.nbytes:,}")
    size = path.stat().st_size
    if claim.offset < 0 or claim.offset + claim.nbytes > size:
        raise FormatError(
            f"the data file {path} has {size:,} bytes, but tensor '{claim.tensor}' of {model} ends at byte "
            f"{claim.offset + claim.nbytes:,}",
            fix="it was cut short, or belongs to another model: copy it again",
        )
    return real


def _resolved(path: Path, claim: Claim) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # the latter is what Python before 3.13 raises
        raise _outside(claim.tensor, f"points at a link that leads nowhere: {claim.location!r}") from error


def _outside(tensor: str, reason: str) -> OutsideError:
    return OutsideError(
        f"tensor '{tensor}' {reason}", fix="do not use this file unless you trust it; export the model again"
    )


def _refused(tensor: str, reason: str) -> FormatError:
    return FormatError(
        f"tensor '{tensor}' {reason}", fix="do not use this file unless you trust it; export the model again"
    )
