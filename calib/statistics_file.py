"""Writes calibration statistics to one file, and reads them back without executing anything.

The file is an ``.npz``: ``header`` is JSON (format version, samples, batches, the caller's own ``origin``, and for each
tensor its name and sums), ``bins`` and ``counts`` hold all occupied histogram bins, tensor by tensor, and ``channels``
all channel sums. The same statistics give the same bytes.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qtool.calib.collect import Collected
from qtool.calib.errors import CalibError
from qtool.calib.statistics import BINS, TensorStatistics

_VERSION = 1
_FORMAT = "qtool.statistics"
_NUMBERS = (
    "minimum",
    "maximum",
    "batches",
    "values",
    "infinite",
    "extremes",
    "minimum_sum",
    "maximum_sum",
    "minimum_square_sum",
    "maximum_square_sum",
    "channel_values",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStatistics:
    """The content of a statistics file.

    Attributes:
        collected: the statistics.
        origin: the writer's record of the model and the data.
    """

    collected: Collected
    origin: Mapping[str, str]


def write_statistics(path: Path, collected: Collected, origin: Mapping[str, str]) -> None:
    """Writes ``collected`` to ``path``, which should end in ``.npz``."""
    tensors, bins, counts, channels = [], [], [], []
    for name, seen in collected.statistics.items():
        occupied = np.flatnonzero(seen.counts)
        bins.append(occupied.astype(np.uint32))
        counts.append(seen.counts[occupied])
        channels.append(seen.channel_sums)
        numbers = {field: getattr(seen, field) for field in _NUMBERS if seen.batches or field == "infinite"}
        tensors.append(
            {
                "name": name,
                "bins": len(occupied),
                "channels": len(seen.channel_sums),
                "channel_axis": seen.channel_axis,
                **numbers,
            }
        )
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "samples": collected.samples,
        "batches": collected.batches,
        "origin": dict(origin),
        "tensors": tensors,
    }
    text = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
    with path.open("wb") as stream:
        np.savez_compressed(
            stream,
            header=text,
            bins=np.concatenate([np.zeros(0, np.uint32), *bins]),
            counts=np.concatenate([np.zeros(0, np.int64), *counts]),
            channels=np.concatenate([np.zeros(0), *channels]),
        )


def read_statistics(path: Path) -> StoredStatistics:
    """Reads a file of ``write_statistics``.

    Raises:
        CalibError: the file does not exist, is damaged, or has an unsupported version.
    """
    if not path.is_file():
        raise CalibError(f"the statistics file {path} does not exist", fix="make it with `qtool calibrate`")
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            bins, counts, channels = archive["bins"], archive["counts"], archive["channels"]
        if header["format"] != _FORMAT:
            raise _damaged(path)
        if header["version"] != _VERSION:
            raise CalibError(
                f"{path} has version {header['version']} of the statistics format, this qtool reads {_VERSION}",
                fix="make it again with `qtool calibrate`",
            )
        return StoredStatistics(
            collected=_collected(header, bins, counts, channels),
            origin={str(key): str(value) for key, value in header["origin"].items()},
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
    channels: npt.NDArray[np.float64],
) -> Collected:
    statistics, bin_at, channel_at = {}, 0, 0
    for entry in header["tensors"]:
        axis = entry["channel_axis"]
        seen = TensorStatistics(channel_axis=None if axis is None else int(axis))
        for field in _NUMBERS:
            if field in entry:
                value = entry[field]
                setattr(seen, field, int(value) if isinstance(getattr(seen, field), int) else float(value))
        bin_end, channel_end = bin_at + int(entry["bins"]), channel_at + int(entry["channels"])
        keys = bins[bin_at:bin_end]
        if bin_end > len(bins) or len(bins) != len(counts) or channel_end > len(channels) or (keys >= BINS).any():
            raise ValueError("the tensors need more than the arrays hold")
        seen.counts[keys] = counts[bin_at:bin_end]
        seen.channel_sums = channels[channel_at:channel_end].astype(np.float64)
        statistics[str(entry["name"])] = seen
        bin_at, channel_at = bin_end, channel_end
    return Collected(statistics=statistics, samples=int(header["samples"]), batches=int(header["batches"]))


def _damaged(path: Path) -> CalibError:
    return CalibError(f"{path} is not a complete statistics file", fix="make it with `qtool calibrate`")
