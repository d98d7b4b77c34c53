"""``--metric detection``: how well boxes are found."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from qtool.cli.app import app
from qtool.metrics.average_precision import PrecisionMeter, average_precision
from qtool.metrics.box_layouts import box_reader
from qtool.metrics.boxes import Boxes, overlaps, suppressed

SIDE = 64
Rows = Sequence[Sequence[float]]


def share(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns intersection over union, by counting rectangles' sides alone."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def precision_by_definition(right: Sequence[bool], truths: int) -> float:
    """Takes each recall by itself, of boxes with the surest first."""
    seen = [(sum(right[: n + 1]) / truths, sum(right[: n + 1]) / (n + 1)) for n in range(len(right))]
    recalls = [n / 100 for n in range(101)]
    return sum(max((p for r, p in seen if r >= least - 1e-12), default=0.0) for least in recalls) / len(recalls)


def map_by_definition(found: Sequence[Rows], true: Sequence[Rows]) -> float:
    """Computes the mean average precision box by box; rows are (x, y, x, y, score, class)."""
    figures = []
    for label in {row[5] for rows in true for row in rows}:
        truths = [[row for row in rows if row[5] == label] for rows in true]
        boxes = sorted(
            ((row, place) for place, rows in enumerate(found) for row in rows if row[5] == label),
            key=lambda entry: -entry[0][4],
        )
        for least in [0.5 + 0.05 * n for n in range(10)]:
            taken: set[tuple[int, int]] = set()
            right = []
            for row, place in boxes:
                free = [n for n in range(len(truths[place])) if (place, n) not in taken]
                best = max(free, key=lambda n: share(row, truths[place][n]), default=None)
                right.append(best is not None and share(row, truths[place][best]) >= least - 1e-12)
                if right[-1] and best is not None:
                    taken.add((place, best))
            figures.append(precision_by_definition(right, sum(map(len, truths))))
    return sum(figures) / len(figures)


def pictures(seed: int, count: int = 4, boxes: int = 6, classes: int = 3) -> np.ndarray:
    """Makes (pictures, boxes, 6) of corners, score and class, all scores different."""
    random = np.random.default_rng(seed)
    low = random.uniform(2, SIDE / 2, size=(count, boxes, 2))
    size = random.uniform(6, SIDE / 2 - 2, size=(count, boxes, 2))
    scores = random.permutation(count * boxes).reshape(count, boxes, 1) / (2 * count * boxes) + 0.45
    labels = random.integers(0, classes, size=(count, boxes, 1))
    return np.concatenate([low, low + size, scores, labels], axis=2).astype(np.float32)


def boxes_of(rows: np.ndarray) -> Boxes:
    return Boxes.of(rows[:, :4], rows[:, 4], rows[:, 5])


@given(marks=st.lists(st.booleans(), max_size=30), missed=st.integers(0, 5))
def test_average_precision_is_what_its_definition_says(marks: list[bool], missed: int) -> None:
    truths = sum(marks) + missed
    if truths:
        scores = np.linspace(1, 0, len(marks))
        found = average_precision(scores, np.array(marks, bool), truths)
        assert found == pytest.approx(precision_by_definition(marks, truths))


@pytest.mark.parametrize("seed", range(5))
def test_mean_average_precision_is_what_its_definition_says(seed: int) -> None:
    true = pictures(seed)
    found = true + np.random.default_rng(seed).normal(size=true.shape) * ([2] * 4 + [0.1, 0])
    found[:, -1, 5] = 1  # so that some classes are wrong
    meter = PrecisionMeter()
    for own, truth in zip(found, true, strict=True):
        meter.add(boxes_of(own), boxes_of(truth))
    assert 0 < meter.result() < 1
    assert meter.result() == pytest.approx(map_by_definition(found.tolist(), true.tolist()))


def test_overlaps_are_intersection_over_union() -> None:
    boxes = pictures(3, count=1)[0, :, :4].astype(np.float64)
    expected = [[share(a, b) for b in boxes.tolist()] for a in boxes.tolist()]
    assert overlaps(boxes, boxes) == pytest.approx(np.array(expected))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_boxes_of_a_broken_model_find_nothing(broken: float) -> None:
    true = pictures(2, count=1)[0]
    meter = PrecisionMeter()
    meter.add(boxes_of(np.full_like(true, broken)), boxes_of(true))
    found = true.copy()
    found[:, :4] = broken
    meter.add(boxes_of(found), boxes_of(true))
    assert meter.result() == 0


def test_the_surest_of_candidates_for_one_object_is_kept() -> None:
    rows = np.array([[0, 0, 9, 10, 0.8, 0], [0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.7, 1], [20, 20, 30, 30, 0.6, 0]])
    assert suppressed(boxes_of(rows)).scores.tolist() == [0.9, 0.7, 0.6]


def _centers(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([(rows[..., :2] + rows[..., 2:4]) / 2, rows[..., 2:4] - rows[..., :2]], axis=-1)


def _by_class(rows: np.ndarray, classes: int = 3) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[rows[..., 5].astype(int)] * rows[..., 4:5]


def _padded(rows: np.ndarray, candidates: int) -> np.ndarray:
    """Adds candidates that are nothing, spread over the picture."""
    spread = np.zeros((len(rows), candidates - rows.shape[1], rows.shape[2]), np.float32)
    spread[..., :2] = np.linspace(0, SIDE, spread.shape[1])[:, None]
    spread[..., 2:4] = 1
    return np.concatenate([rows, spread], axis=1)


def _yolox(rows: np.ndarray) -> np.ndarray:
    """Writes each box into another cell of the finest grid, as offsets and logarithms."""
    cells = np.stack(np.mgrid[:8, :8][::-1], axis=-1).reshape(-1, 2)  # (x, y) of a stride of 8
    found = np.full((len(rows), 64 + 16 + 4, 5 + 3), 0.001, np.float32)
    found[..., :2] = np.linspace(-0.5, 1.5, found.shape[1])[:, None]
    centers = _centers(rows)
    for picture in range(len(rows)):
        for box in range(rows.shape[1]):
            place = 9 * box
            found[picture, place, :2] = centers[picture, box, :2] / 8 - cells[place]
            found[picture, place, 2:4] = np.log(centers[picture, box, 2:] / 8)
            found[picture, place, 4] = 1
            found[picture, place, 5:] = _by_class(rows)[picture, box]
    return found


def _layouts(rows: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    corners, scores, labels = rows[..., :4], rows[..., 4], rows[..., 5]
    known = np.concatenate([_centers(rows), _by_class(rows)], axis=2)
    with_object = np.concatenate([_centers(rows), np.ones_like(rows[..., :1]), _by_class(rows)], axis=2)
    sample = np.broadcast_to(np.arange(len(rows), dtype=np.float32)[:, None, None], (*rows.shape[:2], 1))
    background = np.concatenate([1 - _by_class(rows).sum(2, keepdims=True), _by_class(rows)], axis=2)
    return {
        "classes as integers": {"c": labels.astype(np.int64), "s": scores, "b": corners},
        "classes as floats": {"detection_boxes": corners / SIDE, "scores": scores, "c": labels, "n": np.array([6.0])},
        "centers": {"b": _centers(rows), "s": scores, "c": labels.astype(np.int32)},
        "shares of classes": {"b": corners, "s": _by_class(rows)},
        "shares with background": {"b": corners, "s": background},
        "rows of six": {"output0": rows},
        "rows of seven": {"y": np.concatenate([sample, corners, rows[..., 5:], rows[..., 4:5]], 2).reshape(-1, 7)},
        "upright candidates": {"output0": _padded(known, 84).swapaxes(1, 2)},
        "candidates": {"output0": _padded(with_object, 84)},
        "candidates in shares": {"output0": _padded(with_object, 84) * np.float32([1 / SIDE] * 4 + [1] * 4)},
        "YOLOX": {"output": _yolox(rows)},
    }


@pytest.mark.parametrize("layout", list(_layouts(pictures(0))))
def test_the_same_boxes_are_read_off_every_layout(layout: str) -> None:
    rows = pictures(0)
    rows[..., :2] = np.arange(6)[:, None] * 8 + 1  # no two of them overlap much
    rows[..., 2:4] = rows[..., :2] + 7
    outputs = {name: np.ascontiguousarray(value) for name, value in _layouts(rows)[layout].items()}
    inputs = {"image": np.zeros((len(rows), 3, SIDE, SIDE), np.float32)}
    found = box_reader(outputs, inputs, len(rows))(outputs, len(rows))
    unit = SIDE if layout in ("classes as floats", "candidates in shares") else 1
    for own, expected in zip(found, rows, strict=True):
        wanted = boxes_of(expected[np.argsort(-expected[:, 4])])
        got = own.where(np.argsort(-own.scores))
        assert got.corners * unit == pytest.approx(wanted.corners, abs=1e-3)
        assert got.scores == pytest.approx(wanted.scores, abs=1e-6)
        assert got.classes.tolist() == wanted.classes.tolist()


def test_boxes_without_an_axis_of_samples_are_read() -> None:
    rows = pictures(1, count=1)[0]
    outputs = {"boxes": rows[:, :4], "labels": rows[:, 5].astype(np.int64), "scores": rows[:, 4]}
    (found,) = box_reader(outputs, {}, 1)(outputs, 1)
    assert found.corners == pytest.approx(rows[:, :4])
    nothing = {name: value[:0] for name, value in outputs.items()}
    (none,) = box_reader(nothing, {}, 1)(nothing, 1)
    assert none.scores.size == 0


def _save(path: Path, factor: float, shift: float) -> Path:
    """Writes a model whose output is its input, with corners scaled and moved."""
    scale = np.array([factor] * 4 + [1, 1], np.float32)
    move = np.array([shift] * 4 + [0, 0], np.float32)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "scale"], ["scaled"]), helper.make_node("Add", ["scaled", "move"], ["boxes"])],
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, 6])],
        [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", 6, 6])],
        [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(move, "move")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def report(tmp_path: Path, without_memory: None) -> Any:
    models = (_save(tmp_path / "a.onnx", 1.0, 0.0), _save(tmp_path / "b.onnx", 1.1, -1.0))

    def run(*arguments: object, x: np.ndarray, metric: object = "detection", **labels: np.ndarray) -> Result:
        np.savez(tmp_path / "x.npz", x=x, **labels)
        options = ("--data", tmp_path / "x.npz", "--no-latency", "--json", "--batch-size", 3, "--metric", metric)
        return CliRunner().invoke(app, ["report", *map(str, (*models, *options, *arguments))])

    return run


def _figures(result: Result) -> dict[str, float]:
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout)["figures"])


def _moved(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows[..., :4] * np.float32(1.1) - 1, rows[..., 4:]], axis=-1)


def test_boxes_of_the_float_model_are_to_be_found(report: Any) -> None:
    x = pictures(5, count=7)
    x[:, 0, 4] = 0.1  # not sure enough to be an object
    figures = _figures(report(x=x))
    true = [[row for row in rows if row[4] >= 0.25] for rows in x.tolist()]
    assert figures["metric_float"] == 1
    assert figures["metric"] == pytest.approx(map_by_definition(_moved(x).tolist(), true), abs=1e-6)
    assert figures["metric_drop"] == pytest.approx(1 - figures["metric"], abs=1e-6)


def test_boxes_of_labels_are_to_be_found_where_there_are_any(report: Any) -> None:
    x = pictures(6, count=5)
    label = x[..., [0, 1, 2, 3, 5]] + np.float32([1, 1, 1, 1, 0])
    label[:, 4:, 4] = -1
    figures = _figures(report(x=x, _label=label))
    true = [[[*row[:4], 1, row[4]] for row in rows if row[4] >= 0] for rows in label.tolist()]
    assert figures["metric_float"] == pytest.approx(map_by_definition(x.tolist(), true), abs=1e-6)
    assert figures["metric"] == pytest.approx(map_by_definition(_moved(x).tolist(), true), abs=1e-6)
    assert figures["top1"] is None


def test_a_function_of_ones_own_reads_boxes(report: Any, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def boxes(outputs):\n    return list(outputs['boxes'][:, ::-1])\n")
    x = pictures(5, count=7)
    assert _figures(report(x=x, metric=f"detection:{tmp_path / 'own.py'}:boxes"))["metric"] == pytest.approx(
        _figures(report(x=x))["metric"]
    )


@pytest.mark.parametrize("body", ["return 1", "return []", "return [[1, 2]] * 3", "return ['x'] * 3", "return {}[0]"])
def test_functions_that_return_no_boxes_are_named(report: Any, tmp_path: Path, body: str) -> None:
    (tmp_path / "own.py").write_text(f"def boxes(outputs):\n    {body}\n")
    result = report(x=pictures(5), metric=f"detection:{tmp_path / 'own.py'}:boxes")
    assert result.exit_code == 2
    assert re.search(r"own.py:boxes (returns|raises)", result.stderr)
    assert "(x, y, x, y, score, class)" in result.stderr


def test_outputs_and_labels_without_boxes_are_refused(report: Any) -> None:
    x = pictures(5)
    unlike = report(x=x + 0.3)  # so that classes are none
    assert unlike.exit_code == 2
    assert "boxes [3, 6, 6]" in unlike.stderr
    assert "detection:pkg.module:function" in unlike.stderr
    wrong = report(x=x, _label=np.zeros(len(x), np.int64))
    assert wrong.exit_code == 2
    assert "(samples, objects, 5)" in wrong.stderr
    x[..., 4] = 0
    empty = report(x=x)
    assert empty.exit_code == 2
    assert "no object in the data" in empty.stderr


def test_a_hundred_boxes_of_each_class_count() -> None:
    corners = np.array([[10.0 * place, 0, 10.0 * place + 8, 8] for place in range(160)])
    classes = np.array([0] * 130 + [1] * 30)
    truth = Boxes.of(corners, np.ones(160), classes)
    meter = PrecisionMeter()
    meter.add(Boxes.of(corners, np.linspace(1, 0.5, 160), classes), truth)
    # 100 of 130 are found, which is recall 0 to 0.76, and all of the less sure ones of the other class.
    assert meter.result() == pytest.approx((77 / 101 + 1) / 2)
