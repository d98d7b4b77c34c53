"""Mean average precision of boxes, as in the COCO benchmark (https://cocodataset.org/#detection-eval).

For each class and each overlap t of 0.5, 0.55 … 0.95: a box is a true positive where its intersection over union with
a ground-truth box of its image and class is at least t, and no box of a higher score has been matched with that one.
Over the boxes of all images, by descending score, precision is the share of true positives so far, and recall the
share of ground-truth boxes that were found. The average precision is the mean, over the recalls 0, 0.01 … 1, of the
highest precision at that recall or a higher one, and 0 at recalls that are never reached. The result is the mean over
the overlaps and over the classes that have a ground-truth box.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qtool.metrics.boxes import Boxes, Floats, overlaps

OVERLAPS = np.linspace(0.5, 0.95, 10)
_RECALL_STEPS = 100
_MOST_BOXES = 100


class PrecisionMeter:
    """Compares detections with ground truth, image by image; keeps a score and ten matches for each detection."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._truths: dict[int, int] = {}
        self._scores: dict[int, list[Floats]] = {}
        self._right: dict[int, list[npt.NDArray[np.bool_]]] = {}

    @property
    def truths(self) -> int:
        """How many ground-truth boxes there were."""
        return sum(self._truths.values())

    def add(self, found: Boxes, truth: Boxes) -> None:
        """Adds one image; of more than 100 detections of one class, those of the highest scores count."""
        ordered = found.where(np.argsort(-found.scores, kind="stable"))
        for label in np.unique(truth.classes).tolist():
            self._truths[label] = self._truths.get(label, 0) + int(np.count_nonzero(truth.classes == label))
        for label in np.unique(ordered.classes).tolist():
            own, true = ordered.where(ordered.classes == label), truth.where(truth.classes == label)
            own = own.where(np.arange(len(own.scores)) < _MOST_BOXES)
            self._scores.setdefault(label, []).append(own.scores)
            self._right.setdefault(label, []).append(_right(overlaps(own.corners, true.corners)))

    def result(self) -> float:
        """Returns the mean average precision, 0 to 1; there has to be a ground-truth box."""
        return float(np.mean([self._of_class(label, count) for label, count in self._truths.items()]))

    def _of_class(self, label: int, truths: int) -> float:
        if label not in self._scores:
            return 0.0
        scores, right = np.concatenate(self._scores[label]), np.concatenate(self._right[label])
        return float(np.mean([average_precision(scores, right[:, place], truths) for place in range(len(OVERLAPS))]))


def average_precision(scores: Floats, right: npt.NDArray[np.bool_], truths: int) -> float:
    """Returns the average precision, 0 to 1, of boxes with ``scores`` of which some are ``right``, (boxes,) each."""
    if scores.size == 0:
        return 0.0
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])
    precision = hits / np.arange(1, len(hits) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    # The first place at which each recall is reached; in whole numbers, since 7/20 of them is a recall of 0.35.
    wanted = -(-np.arange(_RECALL_STEPS + 1) * truths // _RECALL_STEPS)
    places = np.searchsorted(hits, wanted, side="left")
    reached = places < len(highest)
    return float(np.where(reached, highest[np.minimum(places, len(highest) - 1)], 0.0).mean())


def _right(shares: Floats) -> npt.NDArray[np.bool_]:
    """Returns which boxes are true positives, (boxes, overlaps): each is matched with the free box of most overlap.

    Args:
        shares: intersection over union, (boxes, ground-truth boxes), by descending score.
    """
    right = np.zeros((len(shares), len(OVERLAPS)), bool)
    for place, least in enumerate(OVERLAPS):
        free = np.ones(shares.shape[1], bool)
        for box, row in enumerate(shares):
            left = np.where(free, row, -1.0)
            best = int(left.argmax()) if left.size else 0
            if left.size and left[best] >= least:
                free[best] = False
                right[box, place] = True
    return right
