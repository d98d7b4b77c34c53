"""``--metric``: scores at the task that the models are for."""

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from qtool.cli.app import app
from qtool.metrics.judged_batch import Batch
from qtool.metrics.task import metric_named
from qtool.metrics.text_scores import edit_accuracy

Pair = Any  # the dataclass in conftest.py, which tests cannot import
texts = st.lists(st.integers(0, 3), max_size=6)

pytestmark = pytest.mark.usefixtures("without_memory")


@pytest.fixture
def report(pair: Pair) -> Callable[..., Result]:
    def run(*arguments: object, data: object = pair.data) -> Result:
        models = (pair.float_model, pair.quantized_model, "--data", data, "--no-latency", "--batch-size", 5)
        return CliRunner().invoke(app, ["report", *map(str, (*models, *arguments))])

    return run


def figures_of(result: Result) -> dict[str, float]:
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout)["figures"])


def judged(
    name: str, outputs: dict[str, np.ndarray], reference: dict[str, np.ndarray], labels: np.ndarray | None = None
) -> float:
    rows = len(next(iter(outputs.values())))
    meter = metric_named(name).start()
    meter.add(Batch(outputs=outputs, reference=reference, inputs={}, labels=labels, rows=rows))
    return meter.result()


def outputs_of(pair: Pair) -> list[np.ndarray]:
    return [
        onnxruntime.InferenceSession(path).run(None, {"x": pair.x})[0].astype(np.float64)
        for path in (pair.float_model, pair.quantized_model)
    ]


def test_cosine_is_the_mean_over_samples(pair: Pair, report: Callable[..., Result]) -> None:
    figures = figures_of(report("--metric", "cosine", "--json"))
    a, b = outputs_of(pair)
    expected = ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
    assert figures["metric"] == pytest.approx(expected, rel=1e-6)
    assert figures["metric_float"] == pytest.approx(1)
    assert figures["metric_drop"] == pytest.approx(1 - expected, abs=1e-6)
    assert figures["top1"] is not None  # labels are class indices still


@pytest.mark.parametrize("name", ["top1", "top5"])
def test_top_scores_are_those_of_the_accuracy(report: Callable[..., Result], name: str) -> None:
    figures = figures_of(report("--metric", name, "--json"))
    assert 100 * figures["metric"] == pytest.approx(figures[name])
    assert 100 * figures["metric_float"] == pytest.approx(figures[f"{name}_float"])


def test_a_function_of_ones_own_gets_outputs_and_labels_of_every_batch(
    pair: Pair, report: Callable[..., Result], tmp_path: Path
) -> None:
    code = "def distance(outputs, labels):\n    return -abs(outputs['logits'][:, 0] - labels)\n"
    (tmp_path / "task.py").write_text(code)
    wanted = np.random.default_rng(1).normal(size=len(pair.x)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=pair.x, target=wanted)
    options = ("--metric", f"{tmp_path / 'task.py'}:distance", "--labels", "target", "--json")
    result = report(*options, data=tmp_path / "d.npz")
    a, b = outputs_of(pair)
    figures = figures_of(result)
    assert figures["metric_float"] == pytest.approx(-np.abs(a[:, 0] - wanted).mean(), rel=1e-5)
    assert figures["metric"] == pytest.approx(-np.abs(b[:, 0] - wanted).mean(), rel=1e-5)
    assert figures["top1"] is None  # these labels are no classes
    failed = report(*options, "--fail-if", "metric < 0", data=tmp_path / "d.npz")
    assert failed.exit_code == 1
    assert "metric is" in failed.stderr


@pytest.mark.parametrize(
    ("body", "word"),
    [("return outputs['nope']", "raises KeyError"), ("return 1.0", "the shape ()"), ("return [float('nan')] * 5", "5")],
)
def test_functions_that_fail_are_named(report: Callable[..., Result], tmp_path: Path, body: str, word: str) -> None:
    (tmp_path / "task.py").write_text(f"def score(outputs, labels):\n    {body}\n")
    result = report("--metric", f"{tmp_path / 'task.py'}:score")
    assert result.exit_code == 2
    assert "task.py:score" in result.stderr
    assert word in result.stderr


def test_an_unknown_metric_names_the_nearest(report: Callable[..., Result]) -> None:
    result = report("--metric", "cosin")
    assert result.exit_code == 2
    assert "did you mean 'cosine'" in result.stderr


def test_metrics_that_need_labels_say_so(pair: Pair, report: Callable[..., Result], tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", x=pair.x)
    result = report("--metric", "top1", data=tmp_path / "bare.npz")
    assert result.exit_code == 2
    assert "--labels" in result.stderr


def test_gates_on_a_metric_ask_for_one(report: Callable[..., Result]) -> None:
    result = report("--fail-if", "metric < 1")
    assert result.exit_code == 2
    assert "--metric" in result.stderr


def edit_distance(left: list[int], right: list[int]) -> int:
    """Reads the distance off the accuracy of one text beside the other."""
    width = max(len(left), len(right), 1)
    rows = [np.array([[*text, *[-1] * (width - len(text))]], np.int64) for text in (left, right)]
    (share,) = edit_accuracy(Batch(outputs={"y": rows[0]}, reference={"y": rows[1]}, inputs={}, labels=None, rows=1))
    return round((1 - share) * max(len(left), len(right)))


@given(left=texts, right=texts)
def test_the_edit_distance_is_a_distance(left: list[int], right: list[int]) -> None:
    distance = edit_distance(left, right)
    assert distance == edit_distance(right, left)
    assert (distance == 0) == (left == right)
    assert abs(len(left) - len(right)) <= distance <= max(len(left), len(right))
    # What difflib changes is one way, and so no shorter than the shortest.
    codes = difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
    assert distance <= sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in codes if kind != "equal")


@pytest.mark.parametrize(("left", "right", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2)])
def test_known_edit_distances(left: str, right: str, distance: int) -> None:
    assert edit_distance([*map(ord, left)], [*map(ord, right)]) == distance


def test_texts_are_read_without_blanks_and_repetitions() -> None:
    def scores(*rows: str) -> np.ndarray:
        return np.stack([np.eye(4, dtype=np.float32)[[int(step) for step in row]] for row in rows])

    outputs = {"text": scores("0110123", "0000000")}
    labels = np.array([[1, 1, 2, 3], [-1, -1, -1, -1]])
    assert judged("edit", outputs, outputs, labels) == 1
    # Half of the first text, and nothing of the second.
    assert judged("edit", {"text": scores("0110100", "3000000")}, outputs) == 0.25


def test_two_vectors_of_zeros_agree_and_one_does_not() -> None:
    for a, b, expected in (([0, 0], [0, 0], 1), ([0, 0], [1, 0], 0), ([1, 0], [2, 0], 1)):
        got, reference = ({"y": np.array([vector], np.float32)} for vector in (b, a))
        assert judged("cosine", got, reference) == expected


def test_outputs_that_do_not_fit_the_metric_are_refused(report: Callable[..., Result]) -> None:
    result = report("--metric", "edit")
    assert result.exit_code == 2
    assert "(samples, steps, classes)" in result.stderr


def test_texts_are_compared_from_the_command_line(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 9, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    for name, factor in (("a.onnx", [1, 1, 1, 1]), ("b.onnx", [1, 1, 1, 3])):
        graph = helper.make_graph(
            [helper.make_node("Mul", ["x", "f"], ["y"])],
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 9, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 9, 4])],
            [numpy_helper.from_array(np.array(factor, np.float32), "f")],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / name)
    options = ("--data", tmp_path / "x.npz", "--no-latency", "--metric", "edit", "--json")
    arguments = ["report", *map(str, (tmp_path / "a.onnx", tmp_path / "b.onnx", *options))]
    figures = figures_of(CliRunner().invoke(app, arguments))
    assert figures["metric_float"] == 1
    assert 0 < figures["metric"] < 1
