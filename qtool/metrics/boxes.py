"""Boxes with scores and classes: the detections in one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# What YOLO's own tools and most others keep: https://docs.ultralytics.com/modes/predict/ has 0.7 and 300.
_SAME_OBJECT = 0.7
_MOST_CANDIDATES = 1000
_MOST_CLASSES = 1 << 31


@dataclass(frozen=True, slots=True)
class Boxes:
    """The detections in one image.

    Attributes:
        corners: two opposite corners a box, (boxes, 4), in any unit; the lower ones first.
        scores: confidence, (boxes,).
        classes: class indices, (boxes,).
    """

    corners: Floats
    scores: Floats
    classes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, corners: npt.NDArray[Any], scores: npt.NDArray[Any], classes: npt.NDArray[Any]) -> Boxes:
        """Takes arrays of any number type; corners in the wrong order are exchanged."""
        found = corners.reshape(-1, 4).astype(np.float64)
        ordered = np.concatenate([np.minimum(found[:, :2], found[:, 2:]), np.maximum(found[:, :2], found[:, 2:])], 1)
        # A broken model may return NaN.
        labels = np.clip(np.nan_to_num(classes.reshape(-1)), -1, _MOST_CLASSES).astype(np.int64)
        return cls(ordered, scores.reshape(-1).astype(np.float64), labels)

    def where(self, chosen: npt.NDArray[Any]) -> Boxes:
        """Returns some of the boxes, by a mask or by their places."""
        return Boxes(self.corners[chosen], self.scores[chosen], self.classes[chosen])


def corners_of(centers: npt.NDArray[Any]) -> Floats:
    """Returns the corners of boxes that are given as center x, center y, width and height, (boxes, 4)."""
    wide = centers.astype(np.float64)
    half = np.abs(wide[:, 2:]) / 2
    return np.concatenate([wide[:, :2] - half, wide[:, :2] + half], axis=1)


def overlaps(left: Floats, right: Floats) -> Floats:
    """Returns intersection over union of every box with every other, (left boxes, right boxes)."""
    # Boxes of a broken model may be infinite; they overlap nothing.
    with np.errstate(invalid="ignore", over="ignore"):
        low = np.maximum(left[:, None, :2], right[None, :, :2])
        high = np.minimum(left[:, None, 2:], right[None, :, 2:])
        common = np.prod(np.clip(high - low, 0, None), axis=2)
        areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (left, right)]
        union = areas[0][:, None] + areas[1][None, :] - common
        shares: Floats = np.zeros_like(common)
        np.divide(common, union, out=shares, where=(union > 0) & np.isfinite(union))
    return shares


def suppressed(boxes: Boxes) -> Boxes:
    """Greedy non-maximum suppression: drops boxes that overlap one of their class with a higher score by 0.7.

    Of more than 1000 boxes, those of the highest scores count.
    """
    order = np.argsort(-boxes.scores, kind="stable")[:_MOST_CANDIDATES]
    ranked = boxes.where(order)
    alike = overlaps(ranked.corners, ranked.corners) > _SAME_OBJECT
    alike &= ranked.classes[:, None] == ranked.classes[None, :]
    kept = np.ones(len(order), bool)
    for place in range(len(order)):
        if kept[place]:
            kept[place + 1 :] &= ~alike[place, place + 1 :]
    return ranked.where(kept)
