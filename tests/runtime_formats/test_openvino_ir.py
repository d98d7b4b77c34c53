"""What OpenVINO writes computes the same in OpenVINO, with its integers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

ov = pytest.importorskip("openvino", reason="needs the extra openvino", exc_type=ImportError)


def _in_onnxruntime(path: str, images: np.ndarray) -> np.ndarray:
    found: np.ndarray = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]
    return found


def _in_openvino(path: str, images: np.ndarray) -> np.ndarray:
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found: np.ndarray = compiled({"image": images})[0]
    return found


def _stored_types(path: str) -> set[str]:
    operators = ov.Core().read_model(path).get_ordered_ops()
    return {
        operator.get_element_type().get_type_name()
        for operator in operators
        if operator.get_type_name() == "Constant" and np.prod(operator.get_output_shape(0)) > 30
    }


def test_a_float_model_keeps_its_outputs_at_every_batch_size(run: Any, folder: Path, images: np.ndarray) -> None:
    result = run("float.onnx", "--to", "openvino", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["format"], report["output"], report["integer_layers"]) == ("openvino", "float.xml", None)
    sizes = [path.stat().st_size for path in (folder / "float.xml", folder / "float.bin")]
    assert report["output_bytes"] == sum(sizes)
    assert [comparison["sizes"]["n"] for comparison in report["comparisons"]] == [2, 3, 1]
    np.testing.assert_allclose(
        _in_openvino("float.xml", images), _in_onnxruntime("float.onnx", images), rtol=1e-4, atol=1e-5
    )
    assert _stored_types("float.xml") == {"f32"}


def test_a_quantized_model_stays_quantized(run: Any, folder: Path, images: np.ndarray) -> None:
    result = run("int8.onnx", "--to", "openvino", "--calib-data", "images.npz", "--json")
    assert result.exit_code == 0, result.output
    layers = json.loads(result.stdout)["integer_layers"]
    assert layers == {"integer": 3, "total": 3}
    assert _stored_types("int8.xml") == {"i8"}
    expected = _in_onnxruntime("int8.onnx", images)
    assert np.abs(_in_openvino("int8.xml", images) - expected).max() < 0.05 * np.abs(expected).max()


def test_half_precision_is_stored_where_it_is_asked_for(run: Any, folder: Path, images: np.ndarray) -> None:
    assert run("float.onnx", "--to", "openvino", "-o", "whole.xml").exit_code == 0
    result = run("float.onnx", "--to", "openvino", "--fp16", "-o", "half.xml")
    assert result.exit_code == 0, result.output
    assert _stored_types("half.xml") == {"f16"}
    whole, half = ((folder / name).stat().st_size for name in ("whole.bin", "half.bin"))
    assert half < 0.6 * whole
    np.testing.assert_allclose(_in_openvino("half.xml", images), _in_openvino("whole.xml", images), atol=2e-2)


def test_the_same_request_gives_the_same_bytes(run: Any, folder: Path) -> None:
    written = []
    for _ in range(2):
        assert run("int8.onnx", "--to", "openvino", "-o", "model.xml", "--force").exit_code == 0
        written.append([(folder / name).read_bytes() for name in ("model.xml", "model.bin")])
    assert written[0] == written[1]


@pytest.mark.parametrize("existing", ["model.xml", "model.bin"])
def test_existing_files_stay_without_force(run: Any, folder: Path, existing: str) -> None:
    (folder / existing).write_bytes(b"precious")
    before = sorted(path.name for path in folder.iterdir())
    result = run("float.onnx", "--to", "openvino", "-o", "model.xml")
    assert result.exit_code == 2
    assert existing in result.stderr
    assert (folder / existing).read_bytes() == b"precious"
    assert sorted(path.name for path in folder.iterdir()) == before
    assert run("float.onnx", "--to", "openvino", "-o", "model.xml", "--force").exit_code == 0
    assert (folder / existing).read_bytes() != b"precious"


def test_what_openvino_does_not_convert_is_named_and_nothing_is_written(run: Any, folder: Path) -> None:
    import onnx

    model = onnx.load("float.onnx")
    model.graph.node[1].op_type, model.graph.node[1].domain = "Unheard", "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, "odd.onnx")
    before = sorted(path.name for path in folder.iterdir())
    result = run("odd.onnx", "--to", "openvino")
    assert result.exit_code == 2
    assert "OpenVINO does not convert odd.onnx" in result.stderr
    assert "Unheard" in result.stderr
    assert "Traceback" not in result.output
    assert sorted(path.name for path in folder.iterdir()) == before
