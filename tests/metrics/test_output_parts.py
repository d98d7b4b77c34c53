"""An output that joins values of unlike size is judged by its worst part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtool.metrics.fidelity import FidelityMeter, OutputFidelity
from tests.closeness import sqnr_db_of


def _compared(a: np.ndarray, b: np.ndarray, batches: int = 1) -> OutputFidelity:
    meter = FidelityMeter()
    for left, right in zip(np.array_split(a, batches), np.array_split(b, batches), strict=True):
        meter.add({"y": left}, {"y": right})
    return meter.results()[0]


def _detections(
    r: np.random.Generator, boxes: int, classes: int, anchors: int, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in pixels that are right to a pixel or so, and scores that are noise."""
    pixels = r.uniform(40, 640, (8, boxes, anchors))
    scores = r.uniform(0, 1, (8, classes, anchors)) ** 2
    a = np.concatenate([pixels, scores], axis=1)
    b = a + r.normal(0, 1, a.shape) * np.repeat([1.0, 0.2], [boxes, classes])[:, None]
    return tuple(np.moveaxis(x, 1, axis).astype(np.float32) for x in (a, b))


@settings(max_examples=25)
@given(
    boxes=st.integers(1, 6),
    classes=st.integers(1, 12),
    anchors=st.integers(13, 60),
    axis=st.sampled_from([1, 2]),
    batches=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_scores_beside_pixels_count(boxes: int, classes: int, anchors: int, axis: int, batches: int, seed: int) -> None:
    a, b = _detections(np.random.default_rng(seed), boxes, classes, anchors, axis)
    found = _compared(a, b, batches)
    scores = (slice(None),) * axis + (slice(boxes, None),)
    assert found.sqnr_db == pytest.approx(sqnr_db_of(a[scores], b[scores]), abs=1e-6)
    assert sqnr_db_of(a, b) > found.sqnr_db + 15
    last = boxes + classes - 1
    assert found.part == (f"{boxes} to {last} of axis {axis}" if classes > 1 else f"{boxes} of axis {axis}")


@pytest.mark.parametrize("axis", [1, 3])
def test_channels_of_images_are_parts_too(axis: int) -> None:
    a, b = (x.reshape(8, 7, 10, 12) for x in _detections(np.random.default_rng(0), 4, 3, 120, 1))
    found = _compared(np.moveaxis(a, 1, axis), np.moveaxis(b, 1, axis))
    assert found.part == f"4 to 6 of axis {axis}"
    assert found.sqnr_db == pytest.approx(sqnr_db_of(a[:, 4:], b[:, 4:]), abs=1e-6)


@settings(max_examples=25)
@given(shape=st.sampled_from([(64, 10), (16, 5, 40), (4, 3, 16, 16), (6, 128, 32)]), seed=st.integers(0, 2**16))
def test_alike_channels_are_one_figure(shape: tuple[int, ...], seed: int) -> None:
    r = np.random.default_rng(seed)
    a = r.normal(0, 3, shape).astype(np.float32)
    b = a + r.normal(0, 0.1, shape).astype(np.float32)
    found = _compared(a, b)
    assert found.part is None
    assert found.sqnr_db == pytest.approx(sqnr_db_of(a, b), abs=1e-6)


def test_classes_that_never_come_up_are_no_part() -> None:
    r = np.random.default_rng(0)
    a = r.normal(0, 1, (8, 5, 30, 30)) * 4
    a[:, 3:] -= 30
    shares = np.exp(a) / np.exp(a).sum(axis=1, keepdims=True)
    assert _compared(shares.astype(np.float32), (shares + 1e-4).astype(np.float32)).part is None


def test_silence_is_no_part() -> None:
    r = np.random.default_rng(0)
    a, b = _detections(r, 4, 3, 20, 1)
    a[:, 4:] *= 1e-3
    assert _compared(a, b).part is None
