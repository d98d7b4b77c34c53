"""``--metric wer``: how many words are wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from qtool.cli.app import app
from qtool.errors import InputError
from qtool.metrics.judged_batch import Batch
from qtool.metrics.task import metric_named

SAMPLES, STEPS, CLASSES = 7, 9, 5


def judged(outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None = None, rows: int = 2) -> float:
    meter = metric_named("wer").start()
    meter.add(Batch(outputs={"y": outputs}, reference={"y": reference}, inputs={}, labels=labels, rows=rows))
    return meter.result()


def scores(*texts: str) -> np.ndarray:
    return np.stack([np.eye(CLASSES, dtype=np.float32)[[int(step) for step in text]] for text in texts])


def test_edits_are_counted_over_the_words_of_all_samples() -> None:
    true = np.array([[3, 4, 3, 4], [1, -1, -1, -1]])
    got = np.array([[3, 3, 4, -1], [1, 2, -1, -1]])  # one deletion, one insertion, of five words
    assert judged(got, true) == pytest.approx(2 / 5)
    assert judged(got, got, labels=true) == pytest.approx(2 / 5)
    assert judged(true, true) == 0
    assert judged(np.repeat(got, 5, axis=1), true) > 1


def test_symbols_are_read_off_scores_in_both_orders_of_axes() -> None:
    true, got = scores("0110120", "3300000"), scores("0110110", "3300400")
    for order in ((0, 1, 2), (1, 0, 2)):
        # 1 1 2 became 1 1 1, and 3 became 3 4: two of four.
        assert judged(got.transpose(order), true.transpose(order)) == pytest.approx(2 / 4)


def test_texts_without_words_have_no_error_rate() -> None:
    nothing = np.full((2, 3), -1)
    with pytest.raises(InputError, match="no words"):
        judged(nothing, nothing)


@pytest.fixture
def report(tmp_path: Path, without_memory: None) -> Any:
    x = np.random.default_rng(0).normal(size=(SAMPLES, STEPS, CLASSES)).astype(np.float32)
    for name, factor in (("a.onnx", [1, 1, 1, 1, 1]), ("b.onnx", [1, 1, 1, 1, 3])):
        graph = helper.make_graph(
            [helper.make_node("Mul", ["x", "f"], ["y"])],
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", STEPS, CLASSES])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", STEPS, CLASSES])],
            [numpy_helper.from_array(np.array(factor, np.float32), "f")],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / name)
    # Every class is a word, but for the last, which parts nothing.
    (tmp_path / "own.py").write_text(
        "def texts(outputs):\n"
        "    words = [['the', 'cat', 'sat', 'on', ''][step] for row in outputs['y'].argmax(2) for step in row]\n"
        f"    return [' '.join(words[n : n + {STEPS}]) for n in range(0, len(words), {STEPS})]\n"
        "def number(outputs):\n    return 3\n"
        "def numbers(outputs):\n    return [1] * len(outputs['y'])\n"
    )

    def run(*arguments: object, metric: str, **labels: np.ndarray) -> Result:
        np.savez(tmp_path / "x.npz", x=x, **labels)
        models = (tmp_path / "a.onnx", tmp_path / "b.onnx", "--data", tmp_path / "x.npz", "--no-latency", "--json")
        asked = metric.replace("own", str(tmp_path / "own.py"))
        return CliRunner().invoke(app, ["report", *map(str, (*models, "--metric", asked, *arguments))])

    return run


def test_errors_count_against_the_model_that_makes_them(report: Any) -> None:
    result = report("--fail-if", "metric_drop > 0.01", metric="wer")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    figures = document["figures"]
    assert figures["metric_float"] == 0
    assert figures["metric"] == pytest.approx(figures["metric_drop"])
    assert figures["metric_drop"] > 0.01
    assert (document["metric"], document["lower_is_better"]) == ("wer", True)


def test_a_function_of_ones_own_makes_texts_that_labels_are_strings_for(report: Any) -> None:
    # Nothing is right: so many words have to go, and one to come for each sample.
    label = np.array(["dog"] * SAMPLES)
    figures = json.loads(report(metric="wer:own:texts", _label=label).stdout)["figures"]
    words = np.random.default_rng(0).normal(size=(SAMPLES, STEPS, CLASSES)).astype(np.float32).argmax(2) != 4
    assert figures["metric_float"] == pytest.approx(np.maximum(words.sum(1), 1).sum() / SAMPLES)


@pytest.mark.parametrize(
    ("metric", "labels", "problem"),
    [
        ("wer:own:number", {}, "does not return 7 texts"),
        ("wer:own:numbers", {}, "values that are not texts"),
        ("wer:own:none", {}, "there is no 'none'"),
        ("wer", {"_label": np.array(["dog"] * SAMPLES)}, "labels of integers of the shape (samples, length)"),
        ("wer", {"_label": np.arange(SAMPLES)}, "labels of integers of the shape (samples, length)"),
        ("wers", {}, "there is no metric 'wers'"),
    ],
)
def test_what_is_no_text_is_refused(report: Any, metric: str, labels: dict[str, np.ndarray], problem: str) -> None:
    result = report(metric=metric, **labels)
    assert result.exit_code == 2
    assert problem in result.stderr
    assert "Traceback" not in result.stderr
