"""Writes calibration statistics to one file, and reads them back without executing anything.

The file is an ``.npz``: ``header`` is JSON (format version, samples, batches, the caller's own ``origin``, which shard
of how many it is, and for each tensor its name and numbers), ``bins`` and ``counts`` hold all occupied histogram bins,
tensor by tensor, and ``digits`` the exact sums of extremes and channels. The same statistics give the same bytes.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qtool.calib.bin_counts import Occupied
from qtool.calib.collect import Collected
from qtool.calib.errors import CalibError
from qtool.calib.exact_sums import Digits, ExactSums
from qtool.calib.shard import Shard
from qtool.calib.statistics import BINS, TensorStatistics

_VERSION = 2
_FORMAT = "qtool.statistics"
_NUMBERS = (
    "minimum",
    "maximum",
    "batches",
    "values",
    "infinite",
    "extremes",
    "channel_values",
)
_SUMS = ("extreme_sums", "channel_sums")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStatistics:
    """The content of a statistics file.

    Attributes:
        collected: the statistics.
        origin: the writer's record of the model, the data and the settings.
        shard: the part of the data that they are of; None for all of it.
    """

    collected: Collected
    origin: Mapping[str, str]
    shard: Shard | None = None


def write_statistics(path: Path, collected: Collected, origin: Mapping[str, str], shard: Shard | None = None) -> None:
    """Writes ``collected`` to ``path``, which should end in ``.npz``; ``shard`` is None for all of the data."""
    path.write_bytes(statistics_bytes(collected, origin, shard))


def statistics_bytes(
    collected: Collected, origin: Mapping[str, str], shard: Shard | None = None, *, compressed: bool = True
) -> bytes:
    """Returns the content of a statistics file; ``compressed`` is a third as large and takes several times as long."""
    tensors, bins, counts, digits = [], [], [], []
    for name, seen in collected.statistics.items():
        occupied = seen.bins.occupied()
        bins.append(occupied.bins.astype(np.uint32))
        counts.append(occupied.counts)
        sums = {field: getattr(seen, field).digits() for field in _SUMS}
        digits += [part.values.reshape(-1) for part in sums.values()]
        numbers = {field: getattr(seen, field) for field in _NUMBERS if seen.batches or field == "infinite"}
        tensors.append(
            {
                "name": name,
                "bins": len(occupied.bins),
                "channel_axis": seen.channel_axis,
                **{field: (part.lowest, *part.values.shape) for field, part in sums.items()},
                **numbers,
            }
        )
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "samples": collected.samples,
        "batches": collected.batches,
        "origin": dict(origin),
        "shard": None if shard is None else str(shard),
        "tensors": tensors,
    }
    text = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
    stream = BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(
        stream,
        header=text,
        bins=np.concatenate([np.zeros(0, np.uint32), *bins]),
        counts=np.concatenate([np.zeros(0, np.int64), *counts]),
        digits=np.concatenate([np.zeros(0, np.int32), *digits]),
    )
    return stream.getvalue()


def read_statistics(path: Path) -> StoredStatistics:
    """Reads a file of ``write_statistics``.

    Raises:
        CalibError: the file does not exist, is damaged, or has an unsupported version.
    """
    if not path.is_file():
        raise CalibError(f"the statistics file {path} does not exist", fix="make it with `qtool calibrate`")
    return _read(path, str(path))


def statistics_from(content: bytes, name: str) -> StoredStatistics:
    """Reads the content of a statistics file, which errors call ``name``.

    Raises:
        CalibError: it is damaged, or has an unsupported version.
    """
    return _read(BytesIO(content), name)


def _read(source: Path | BytesIO, path: str) -> StoredStatistics:
    try:
        with np.load(source, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            bins, counts, digits = archive["bins"], archive["counts"], archive["digits"]
        if header["format"] != _FORMAT:
            raise _damaged(path)
        if header["version"] != _VERSION:
            raise CalibError(
                f"{path} has version {header['version']} of the statistics format, this qtool reads {_VERSION}",
                fix="make it again with `qtool calibrate`",
            )
        return StoredStatistics(
            collected=_collected(header, bins, counts, digits),
            origin={str(key): str(value) for key, value in header["origin"].items()},
            shard=None if header["shard"] is None else Shard.parse(str(header["shard"])),
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise _damaged(path) from error


def _collected(
    header: Mapping[str, Any],
    bins: npt.NDArray[np.uint32],
    counts: npt.NDArray[np.int64],
    digits: npt.NDArray[np.int32],
) -> Collected:
    statistics, bin_at, digit_at = {}, 0, 0
    for entry in header["tensors"]:
        axis = entry["channel_axis"]
        seen = TensorStatistics(channel_axis=None if axis is None else int(axis))
        for field in _NUMBERS:
            if field in entry:
                value = entry[field]
                setattr(seen, field, int(value) if isinstance(getattr(seen, field), int) else float(value))
        bin_end = bin_at + int(entry["bins"])
        keys = bins[bin_at:bin_end]
        if bin_end > len(bins) or len(bins) != len(counts) or (keys >= BINS).any():
            raise ValueError("the tensors need more bins than the arrays hold")
        seen.bins.put(Occupied(keys.astype(np.int64), counts[bin_at:bin_end]))
        for field in _SUMS:
            lowest, places, sums = map(int, entry[field])
            digit_end = digit_at + places * sums
            values = digits[digit_at:digit_end].reshape(places, sums)
            setattr(seen, field, ExactSums.from_digits(Digits(lowest, values)))
            digit_at = digit_end
        if seen.extreme_sums.size != TensorStatistics().extreme_sums.size:
            raise ValueError("there are sums of something else than the extremes")
        statistics[str(entry["name"])] = seen
        bin_at = bin_end
    return Collected(statistics=statistics, samples=int(header["samples"]), batches=int(header["batches"]))


def _damaged(path: str) -> CalibError:
    return CalibError(f"{path} is not a complete statistics file", fix="make it with `qtool calibrate`")
