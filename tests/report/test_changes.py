"""The classes and samples that a quantized model changes most."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner, Result

from qtool.cli.app import app
from qtool.metrics.accuracy import AccuracyMeter
from qtool.metrics.changed_samples import SampleMeter

Pair = Any  # the dataclass in conftest.py, which tests cannot import

pytestmark = pytest.mark.usefixtures("without_memory")


def report(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments), "--no-latency"])


def outputs_of(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    a, b = (
        onnxruntime.InferenceSession(path).run(None, {"x": pair.x})[0]
        for path in (pair.float_model, pair.quantized_model)
    )
    return a.astype(np.float64), b.astype(np.float64)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_samples_with_the_most_noise_are_listed(pair: Pair, batch_size: int) -> None:
    result = report(pair.float_model, pair.quantized_model, "--data", pair.data, "--batch-size", batch_size, "--json")
    samples = json.loads(result.stdout)["quantized_models"][0]["samples"]
    a, b = outputs_of(pair)
    sqnr = 10 * np.log10((a**2).sum(1) / ((a - b) ** 2).sum(1))
    worst = np.argsort(sqnr)[:8]
    assert [sample["index"] for sample in samples] == worst.tolist()
    assert [sample["sqnr_db"] for sample in samples] == pytest.approx(sqnr[worst], abs=0.01)
    assert [sample["float_class"] for sample in samples] == a.argmax(1)[worst].tolist()
    assert [sample["quantized_class"] for sample in samples] == b.argmax(1)[worst].tolist()


def test_classes_are_counted_by_label(pair: Pair) -> None:
    result = report(pair.float_model, pair.quantized_model, "--data", pair.data, "--json")
    classes = json.loads(result.stdout)["quantized_models"][0]["classes"]
    right = [outputs.argmax(1) == pair.label for outputs in outputs_of(pair)]
    expected = {
        label: [int((pair.label == label).sum()), *(int(one[pair.label == label].sum()) for one in right)]
        for label in range(10)
    }
    changed = {label: counts for label, counts in expected.items() if counts[1] != counts[2]}
    assert changed  # otherwise nothing is tested
    found = {entry["label"]: [entry["samples"], entry["float_right"], entry["quantized_right"]] for entry in classes}
    assert found == changed


def test_the_terminal_shows_them_when_asked(pair: Pair) -> None:
    options = (pair.float_model, pair.quantized_model, "--data", pair.data)
    assert "Samples that change most" not in report(*options).stdout
    shown = report(*options, "--changes").stdout
    assert "Samples that change most" in shown
    assert "Classes that change most" in shown


def test_samples_that_stay_the_same_are_not_listed(pair: Pair) -> None:
    result = report(pair.float_model, pair.float_model, "--data", pair.data, "--json")
    (model,) = json.loads(result.stdout)["quantized_models"]
    assert (model["samples"], model["classes"]) == ([], [])


def test_outputs_that_are_no_numbers_come_first() -> None:
    meter = SampleMeter()
    a = np.ones((3, 2), np.float32)
    b = a * np.float32(1.1)
    b[1, 0] = np.nan
    meter.add({"x": a}, {"y": a}, {"y": b})
    meter.add({"x": a}, {"y": a}, {"y": a})
    assert [(sample.index, sample.sqnr_db) for sample in meter.result()[:2]] == [
        (1, -np.inf),
        (0, pytest.approx(20, abs=0.01)),
    ]
    assert len(meter.result()) == 3


def test_classes_that_lose_most_come_first() -> None:
    labels = np.array([0, 0, 1, 1, 2, 3])
    right, wrong = np.eye(4, dtype=np.float32)[labels], np.eye(4, dtype=np.float32)[[0, 3, 2, 0, 2, 3]]
    float_meter, quantized_meter = AccuracyMeter(labels), AccuracyMeter(labels)
    for part in (slice(0, 3), slice(3, 6)):
        float_meter.add(right[part])
        quantized_meter.add(wrong[part])
    changes = float_meter.changes_to(quantized_meter)
    assert [(change.label, change.samples, change.quantized_right) for change in changes] == [(1, 2, 0), (0, 2, 1)]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pages_hold_the_pictures_of_images(tmp_path: Path, layout: str) -> None:
    shape = [3, 16, 12] if layout == "nchw" else [16, 12, 3]
    images = np.random.default_rng(2).random(size=(4, *shape)).astype(np.float32)
    images[0].flat[:2] = (0.0, 1.0)  # so that contrast stays as it is
    np.savez(tmp_path / "images.npz", x=images)

    def save(name: str, factor: float) -> Path:
        graph = helper.make_graph(
            [helper.make_node("Mul", ["x", "f"], ["y"])],
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *shape])],
            [numpy_helper.from_array(np.float32(factor), "f")],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / name)
        return tmp_path / name

    page = tmp_path / "r.html"
    result = report(save("a.onnx", 1.0), save("b.onnx", 1.01), "--data", tmp_path / "images.npz", "--html", page)
    assert result.exit_code == 0, result.stderr
    pictures = dict(
        re.findall(r'<img alt="sample (\d+)" src="data:image/png;base64,([^"]+)">', page.read_text(encoding="utf-8"))
    )
    assert set(pictures) == {"0", "1", "2", "3"}
    with Image.open(io.BytesIO(base64.b64decode(pictures["0"]))) as picture:
        assert (picture.size, picture.mode) == ((12, 16), "RGB")
        pixels = np.asarray(picture, np.float32) / 255
    expected = images[0].transpose(1, 2, 0) if layout == "nchw" else images[0]
    assert np.abs(pixels - expected).max() <= 0.5 / 255 + 1e-6
