"""The samples that quantization changes most."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qtool.calib.specs import Array, samples_in

_KEPT = 8
_IMAGE_AXES = 4
_CHANNELS = (1, 3)
_SMALLEST_PICTURE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedSample:
    """One sample whose outputs differ.

    Attributes:
        index: which one, counted from 0 in the order of the data.
        sqnr_db: signal-to-quantization-noise ratio of its outputs, the worst one; minus infinity where they are NaN.
        float_class: the class that the float model predicts; None where no output holds one score per class.
        quantized_class: the class that the quantized model predicts.
        picture: the sample, float32 of the shape (height, width, channels), where it is an image; None otherwise.
    """

    index: int
    sqnr_db: float
    float_class: int | None
    quantized_class: int | None
    picture: Array | None


class SampleMeter:
    """Keeps the samples with the most noise; of all others, at most one batch is in memory."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._seen = 0
        # The least changed of those kept is the first: heapq keeps the smallest there.
        self._kept: list[tuple[float, int, ChangedSample]] = []

    def add(self, feed: Mapping[str, Array], expected: Mapping[str, Array], got: Mapping[str, Array]) -> None:
        """Adds one batch; an output counts where its first axis holds the samples."""
        rows = samples_in(feed)
        noise = _noise(expected, got, rows)
        # A sample that is as noisy as one before it comes after it.
        for row in np.argsort(-noise, kind="stable")[:_KEPT].tolist():
            share = float(noise[row])
            if share <= 0 or (len(self._kept) == _KEPT and share <= self._kept[0][0]):
                break
            sample = ChangedSample(
                index=self._seen + row,
                sqnr_db=-10 * math.log10(share) if math.isfinite(share) else -math.inf,
                float_class=_named_class(expected, row, rows),
                quantized_class=_named_class(got, row, rows),
                picture=_picture(feed, row),
            )
            entry = (share, -sample.index, sample)
            if len(self._kept) < _KEPT:
                heapq.heappush(self._kept, entry)
            else:
                heapq.heapreplace(self._kept, entry)
        self._seen += rows

    def result(self) -> tuple[ChangedSample, ...]:
        """Returns the samples that changed most, the worst first."""
        return tuple(sample for _, _, sample in sorted(self._kept, key=lambda entry: entry[:2], reverse=True))


def _noise(expected: Mapping[str, Array], got: Mapping[str, Array], rows: int) -> npt.NDArray[np.float64]:
    """Returns noise over signal of each row, (rows,), in the worst output; 0 where nothing can be compared."""
    worst = np.zeros(rows)
    for name, reference in expected.items():
        other = got[name]
        if reference.dtype.kind != "f" or other.dtype.kind != "f" or reference.shape != other.shape:
            continue
        if rows != 1 and (reference.ndim == 0 or len(reference) != rows):
            continue
        a, b = (value.reshape(rows, -1).astype(np.float64) for value in (reference, other))
        signal, noise = np.square(a).sum(axis=1), np.square(a - b).sum(axis=1)
        share = np.divide(noise, signal, out=np.where(noise > 0, np.inf, 0.0), where=signal > 0)
        worst = np.maximum(worst, np.where(np.isnan(share), np.inf, share))
    return worst


def _named_class(outputs: Mapping[str, Array], row: int, rows: int) -> int | None:
    for value in outputs.values():
        if value.ndim == 2 and value.shape[1] >= 2 and len(value) == rows and value.dtype.kind == "f":
            return int(value[row].argmax())
    return None


def _picture(feed: Mapping[str, Array], row: int) -> Array | None:
    for value in feed.values():
        if value.ndim != _IMAGE_AXES or value.dtype.kind not in "fui":
            continue
        image: Array = value[row].astype(np.float32)
        if image.shape[0] in _CHANNELS and min(image.shape[1:]) >= _SMALLEST_PICTURE:
            return image.transpose(1, 2, 0)
        if image.shape[2] in _CHANNELS and min(image.shape[:2]) >= _SMALLEST_PICTURE:
            return image
    return None
