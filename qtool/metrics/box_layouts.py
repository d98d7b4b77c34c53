"""Determines the layout of a detector's outputs, and reads boxes from them.

Supported: boxes, scores and classes in separate tensors, as graphs with non-maximum suppression return them; one
tensor of (x, y, x, y, score, class) rows; and one tensor of YOLO's candidates, (samples, 4 + classes, candidates) or
(samples, candidates, 5 + classes), decoded, or raw as in YOLOX. The layout is inferred from shapes and values of
the float model's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from qtool.calib.specs import Array
from qtool.errors import InputError
from qtool.metrics.boxes import Boxes, corners_of, suppressed

BoxReader: TypeAlias = Callable[[Mapping[str, Array], int], list[Boxes]]

# Candidates of lower scores never rank above detections, and there are thousands of them.
_LEAST_SCORE = 0.05
_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
_CHANNELS = (1, 3, 4)
# Rounding of the last digits, not more.
_SLACK = 1e-3


def box_reader(reference: Mapping[str, Array], inputs: Mapping[str, Array], rows: int) -> BoxReader:
    """Returns the function that reads boxes from outputs of this layout, given the outputs and the number of samples.

    Args:
        reference: the float model's outputs for one batch.
        inputs: what it ran on.
        rows: how many samples these are.

    Raises:
        InputError: the layout is not supported.
    """
    reader = _beside_scores(reference, rows) or _rows_of_six(reference, rows) or _rows_of_seven(reference, rows)
    reader = reader or _candidates(reference, inputs, rows)
    if reader is None:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in reference.items())
        raise InputError(
            f"the metric 'detection' finds no boxes in the outputs {shapes}",
            fix="give a function that returns an array of (x, y, x, y, score, class) rows a sample: "
            "--metric detection:pkg.module:function",
        )
    return reader


def _beside_scores(reference: Mapping[str, Array], rows: int) -> BoxReader | None:
    """Boxes (samples, n, 4) with scores and classes (samples, n), or with a score a class (samples, n, classes)."""
    boxes = [name for name, value in reference.items() if _floats(value) and value.shape[-1:] == (4,)]
    if len(boxes) > 1:
        # Scores of four classes have the same shape.
        boxes = [name for name in boxes if "box" in name.lower()] or [
            name for name in boxes if not _shares(reference[name])
        ]
    if len(boxes) != 1:
        return None
    (name,) = boxes
    # Torchvision's detectors give no axis for the samples.
    flat = reference[name].ndim == 2 and rows == 1
    known = {other: value[None] if flat else value for other, value in reference.items()}
    shape = known[name].shape[:2]
    if known[name].ndim != 3 or shape[0] != rows:
        return None
    others = {other: value for other, value in known.items() if other != name and value.shape[:2] == shape}
    by_class = [other for other, value in others.items() if _floats(value) and value.ndim == 3 and _shares(value)]
    of_box = {other: value for other, value in others.items() if value.ndim == 2}
    classes = next((other for other, value in of_box.items() if value.dtype.kind in "iu"), None)
    scores = [other for other, value in of_box.items() if _floats(value) and _shares(value)]
    if classes is None and len(of_box) > 1:
        # Classes may be floats too.
        classes = next((other for other, value in of_box.items() if _whole(value) and "score" not in other), None)
        scores = [other for other in scores if other != classes]
    centered = not _has_corners(known[name])
    if not (len(scores) == 1 or (not scores and len(by_class) == 1)):
        return None
    background = not scores and _adds_to_one(others[by_class[0]])

    def read(outputs: Mapping[str, Array], rows: int) -> list[Boxes]:
        values = {key: value[None] if flat else value for key, value in outputs.items()}
        found = []
        for row in range(rows):
            corners = corners_of(values[name][row]) if centered else values[name][row]
            if scores:
                labels = np.zeros(len(corners)) if classes is None else np.rint(values[classes][row])
                found.append(Boxes.of(corners, values[scores[0]][row], labels))
            else:
                # In a softmax over classes, the first is the background.
                own = values[by_class[0]][row][:, 1:] if background else values[by_class[0]][row]
                found.append(_chosen(corners, own))
        return found

    return read


def _rows_of_six(reference: Mapping[str, Array], rows: int) -> BoxReader | None:
    """One tensor (samples, n, 6) of corners, score and class."""
    name = _only(reference, rows)
    if name is None or reference[name].shape[-1] != 6:
        return None
    value = reference[name]
    if not (_whole(value[..., 5]) and _shares(value[..., 4])):
        return None
    return lambda outputs, _: [Boxes.of(row[:, :4], row[:, 4], np.rint(row[:, 5])) for row in outputs[name]]


def _rows_of_seven(reference: Mapping[str, Array], rows: int) -> BoxReader | None:
    """One tensor (n, 7) of sample, corners, class and score, for all samples of a batch."""
    found = [name for name, value in reference.items() if _floats(value) and value.ndim == 2 and value.shape[1] == 7]
    if len(found) != 1:
        return None
    (name,) = found
    value = reference[name]
    if not (_whole(value[:, [0, 5]]) and _shares(value[:, 6]) and (value[:, 0] < rows).all()):
        return None

    def read(outputs: Mapping[str, Array], rows: int) -> list[Boxes]:
        own = [outputs[name][outputs[name][:, 0] == row] for row in range(rows)]
        return [Boxes.of(found[:, 1:5], found[:, 6], np.rint(found[:, 5])) for found in own]

    return read


def _candidates(reference: Mapping[str, Array], inputs: Mapping[str, Array], rows: int) -> BoxReader | None:
    """One tensor of YOLO: a candidate for each place of each of its grids."""
    name = _only(reference, rows)
    if name is None:
        return None
    _, first, second = reference[name].shape
    # YOLOv8 and after: (samples, 4 + classes, candidates), without an objectness score.
    upright = first >= 5 and second > first
    if not upright and not (second >= 6 and first > second):
        return None
    value = reference[name].swapaxes(1, 2) if upright else reference[name]
    # Texts have this shape too: a softmax over symbols at each step.
    if not _shares(value[..., 4:]) or _adds_to_one(value) or _adds_to_one(value.swapaxes(1, 2)):
        return None
    size = _picture_size(inputs)
    grid = None
    if not upright and _is_undecoded(value, size):
        grid = None if size is None else _grid(value.shape[1], size)
        if grid is None:
            return None

    def read(outputs: Mapping[str, Array], rows: int) -> list[Boxes]:
        found = []
        for row in (outputs[name].swapaxes(1, 2) if upright else outputs[name])[:rows]:
            places = row[:, :4] if grid is None else _decoded(row[:, :4], grid)
            scores = row[:, 4:] if upright else row[:, 5:] * row[:, 4:5]
            found.append(_chosen(corners_of(places), scores))
        return found

    return read


def _chosen(corners: Array, scores: Array) -> Boxes:
    """Takes the class of the highest score for each candidate, then suppresses candidates for the same object."""
    labels = scores.argmax(axis=1)
    best = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    sure = best >= _LEAST_SCORE
    return suppressed(Boxes.of(corners[sure], best[sure], labels[sure]))


def _is_undecoded(value: Array, size: tuple[int, int] | None) -> bool:
    """Returns whether coordinates are offsets within grid cells, not positions in the image, which span all of it."""
    centers = value[..., :2]
    reach = max(size) / 2 if size is not None else max(_STRIDES[0])
    return bool(centers.max() < reach and (centers.min() < -0.05 or centers.max() > 1.05))


def _grid(candidates: int, size: tuple[int, int]) -> Array | None:
    """Returns column, row and stride of each candidate, (candidates, 3), as YOLOX orders them; None for others."""
    for strides in _STRIDES:
        cells = []
        for stride in strides:
            row, column = np.mgrid[: size[0] // stride, : size[1] // stride]
            cells.append(np.stack([column, row, np.full_like(row, stride)], axis=-1).reshape(-1, 3))
        found = np.concatenate(cells)
        if len(found) == candidates:
            return found
    return None


def _decoded(places: Array, grid: Array) -> Array:
    """Returns center and size in pixels: (offset + cell) times stride, and the exponential of the size times stride.

    Ge et al., YOLOX: Exceeding YOLO Series in 2021, https://arxiv.org/abs/2107.08430.
    """
    wide = places.astype(np.float64)
    # Bounds the sizes that a broken model gives.
    sizes = np.exp(np.minimum(wide[:, 2:], 20.0))
    return np.concatenate([wide[:, :2] + grid[:, :2], sizes], axis=1) * grid[:, 2:]


def _picture_size(inputs: Mapping[str, Array]) -> tuple[int, int] | None:
    for value in inputs.values():
        if value.ndim == 4:
            first = value.shape[1] in _CHANNELS
            return (value.shape[2], value.shape[3]) if first else (value.shape[1], value.shape[2])
    return None


def _only(reference: Mapping[str, Array], rows: int) -> str | None:
    found = [name for name, value in reference.items() if _floats(value) and value.ndim == 3 and len(value) == rows]
    return found[0] if len(found) == 1 else None


def _floats(value: Array) -> bool:
    return value.dtype.kind == "f"


def _shares(value: Array) -> bool:
    return bool((value >= -_SLACK).all() and (value <= 1 + _SLACK).all())


def _whole(value: Array) -> bool:
    return bool((value == np.rint(value)).all())


def _adds_to_one(value: Array) -> bool:
    return value.shape[-1] > 1 and bool((np.abs(value.sum(axis=-1) - 1) < 10 * _SLACK).all())


def _has_corners(value: Array) -> bool:
    return bool((value[..., 2:] >= value[..., :2] - _SLACK).all())
