import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

IMAGE_FILES = ("image.keras", "image.h5", "image_saved", "image_frozen.pb")


def outputs(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)


def stored(models: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return dict(np.load(models / f"{name}.feeds.npz")), dict(np.load(models / f"{name}.outputs.npz"))


@pytest.mark.parametrize("name", IMAGE_FILES)
def test_each_kind_of_file_computes_what_tensorflow_does(run: Any, models: Path, tmp_path: Path, name: str) -> None:
    result = run("convert", str(models / name), "-o", "model.onnx", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["inputs"] == ["image (batch, 16, 16, 3)"]
    assert report["outputs"][0].endswith(" (batch, 5)")
    assert [one["sizes"]["batch"] for one in report["comparisons"]] == [2, 3, 1]
    feeds, expected = stored(models, "image")
    np.testing.assert_allclose(outputs(tmp_path / "model.onnx", feeds)[0], expected["scores"], atol=1e-5)


def test_normalizations_are_folded_into_the_layers(run: Any, models: Path, tmp_path: Path) -> None:
    assert run("convert", str(models / "image.keras"), "--nchw", "-o", "model.onnx").exit_code == 0
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert counts["Conv"] == 3
    assert not counts["BatchNormalization"]
    assert not counts["Transpose"]
    # Those of the Gelu alone.
    assert counts["Mul"] <= 3


def test_channels_first_takes_transposed_images(run: Any, models: Path, tmp_path: Path) -> None:
    result = run("convert", str(models / "image_saved"), "--nchw", "-o", "model.onnx", "--json")
    assert json.loads(result.stdout)["inputs"] == ["image (batch, 3, 16, 16)"]
    feeds, expected = stored(models, "image")
    moved = {"image": feeds["image"].transpose(0, 3, 1, 2)}
    np.testing.assert_allclose(outputs(tmp_path / "model.onnx", moved)[0], expected["scores"], atol=1e-5)


@pytest.mark.parametrize("name", ["sequence.keras", "sequence_saved"])
def test_recurrent_layers_convert(run: Any, models: Path, tmp_path: Path, name: str) -> None:
    assert run("convert", str(models / name), "-o", "model.onnx").exit_code == 0
    feeds, expected = stored(models, "sequence")
    np.testing.assert_allclose(outputs(tmp_path / "model.onnx", feeds)[0], expected["output"], atol=1e-5)


def test_several_inputs_and_outputs_keep_their_names(run: Any, models: Path, tmp_path: Path) -> None:
    assert run("convert", str(models / "two.keras"), "-o", "model.onnx").exit_code == 0
    feeds, expected = stored(models, "two")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["p", "q"]
    for value, name in zip(session.run(None, feeds), ("p", "q"), strict=True):
        np.testing.assert_allclose(value, expected[name], atol=1e-5)


def test_a_signature_can_be_chosen(run: Any, models: Path, tmp_path: Path) -> None:
    source = str(models / "signatures")
    assert "it also has thrice" in run("inspect", source).stdout
    x = np.ones((2, 4), np.float32)
    for arguments, name, factor in (((), "y", 2), (("--signature", "thrice"), "z", 3)):
        result = run("convert", source, *arguments, "-o", "model.onnx", "--force")
        assert result.exit_code == 0, result.output
        session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(session.run([name], {"x": x})[0], factor * x)


def test_real_data_is_what_both_are_compared_on(run: Any, models: Path) -> None:
    data = str(models / "image.feeds.npz")
    result = run("convert", str(models / "image.keras"), "--calib-data", data, "-o", "model.onnx", "--json")
    assert {one["data"] for one in json.loads(result.stdout)["comparisons"]} == {"real"}


@pytest.mark.parametrize("name", ["image.keras", "image_saved"])
def test_a_tensorflow_model_is_quantized_at_once(run: Any, models: Path, tmp_path: Path, name: str) -> None:
    data = str(models / "image.feeds.npz")
    arguments = ("--calib-data", data, "--effort", "fast", "--smallest", "-o", "int8.onnx")
    result = run("quantize", str(models / name), *arguments)
    assert result.exit_code == 0, result.output
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node)
    assert kinds["QuantizeLinear"] > 2


def test_part_of_a_frozen_graph_can_be_chosen(run: Any, models: Path, tmp_path: Path) -> None:
    result = run("convert", str(models / "unknown.pb"), "--inputs", "x", "--outputs", "y:0", "-o", "model.onnx")
    assert result.exit_code == 0, result.output
    x = np.array([[-1.0, 2.0, -3.0, 4.0]], np.float32)
    np.testing.assert_array_equal(outputs(tmp_path / "model.onnx", {"x": x})[0], np.maximum(x, 0))


def test_operators_that_onnx_does_not_have_are_named(run: Any, models: Path) -> None:
    result = run("convert", str(models / "unknown.pb"), "-o", "model.onnx")
    assert result.exit_code == 2
    assert "BesselI0e (1)" in result.output
    assert "--outputs" in result.output
    assert not Path("model.onnx").exists()


def test_code_inside_a_keras_file_does_not_run(run: Any, models: Path) -> None:
    result = run("convert", str(models / "lambda.keras"), "-o", "model.onnx")
    assert result.exit_code == 2
    assert "Lambda" in result.output
    assert "model.export(folder)" in result.output


def test_what_inspect_tells_without_tensorflow_is_what_tensorflow_wrote(run: Any, models: Path) -> None:
    for name in IMAGE_FILES:
        facts = json.loads(run("inspect", str(models / name), "--json").stdout)
        assert facts["program"]["inputs"] == ["image float32 (?, 16, 16, 3)"], name
        assert facts["program"]["layouts"] == {"image": "nhwc"}, name
        if name.endswith((".keras", ".h5")):
            assert facts["parameters"] == 3 * 3 * 3 * 8 + 3 * 3 * 8 + 2 * 4 * 8 + 8 * 12 + 12 + 12 * 5 + 5, name
    saved = json.loads(run("inspect", str(models / "image_saved"), "--json").stdout)
    assert saved["program"]["outputs"] == ["output_0 float32 (?, 5)"]
    assert saved["parameters"] >= 3 * 3 * 3 * 8 + 3 * 3 * 8 + 8 * 12 + 12 + 12 * 5 + 5
