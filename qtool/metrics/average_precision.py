"""Mean average precision of boxes, as the COCO benchmark counts it (https://cocodataset.org/#detection-eval).

For each class and each overlap t of 0.5, 0.55 … 0.95: a box is right where it overlaps a true box of its picture and
class by at least t and no surer box has taken that one before. Down the boxes of all pictures, the surest first,
precision is the share of right boxes so far, recall the share of true boxes that they found. The average precision is
the mean, over the recalls 0, 0.01 … 1, of the highest precision at that recall or a higher one, and 0 at recalls that
are never reached. The figure is the mean over the overlaps and over the classes that have a true box.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qtool.metrics.boxes import Boxes, Floats, overlaps

OVERLAPS = np.linspace(0.5, 0.95, 10)
_RECALL_STEPS = 100
_MOST_BOXES = 100


class PrecisionMeter:
    """Compares found boxes with true ones, picture by picture; keeps the score and ten marks of each box found."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        self._truths: dict[int, int] = {}
        self._scores: dict[int, list[Floats]] = {}
        self._right: dict[int, list[npt.NDArray[np.bool_]]] = {}

    @property
    def truths(self) -> int:
        """How many true boxes there were."""
        return sum(self._truths.values())

    def add(self, found: Boxes, truth: Boxes) -> None:
        """Adds one picture; of more than 100 boxes found of one class, the surest count."""
        ordered = found.where(np.argsort(-found.scores, kind="stable"))
        for label in np.unique(truth.classes).tolist():
            self._truths[label] = self._truths.get(label, 0) + int(np.count_nonzero(truth.classes == label))
        for label in np.unique(ordered.classes).tolist():
            own, true = ordered.where(ordered.classes == label), truth.where(truth.classes == label)
            own = own.where(np.arange(len(own.scores)) < _MOST_BOXES)
            self._scores.setdefault(label, []).append(own.scores)
            self._right.setdefault(label, []).append(_right(overlaps(own.corners, true.corners)))

    def result(self) -> float:
        """Returns the mean average precision, 0 to 1; there has to be a true box."""
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
    """Returns which boxes are right, (boxes, overlaps): each takes the true box that it overlaps most and that is free.

    Args:
        shares: intersection over union, (boxes, true boxes), the surest box first.
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
