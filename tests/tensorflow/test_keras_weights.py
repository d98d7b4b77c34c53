"""Files of Keras weights alone, with the code that builds the model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

NETWORKS = Path(__file__).with_name("keras_networks.py")
FACTORY = f"{NETWORKS}:network"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("make_weights.py")), str(folder)],
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
    )
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("places.weights.h5", "scores.npy"),
        ("places.h5", "scores.npy"),
        ("list.h5", "scores.npy"),
        ("trained.weights.h5", "trained.npy"),
    ],
)
def test_weights_and_their_code_compute_what_keras_does(
    run: Any, weights: Path, tmp_path: Path, name: str, expected: str
) -> None:
    result = run("convert", str(weights / name), "--model", FACTORY, "-o", "m.onnx", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["inputs"] == ["row (batch, 4)"]
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    scores = session.run(None, dict(np.load(weights / "row.npz")))[0]
    np.testing.assert_allclose(scores, np.load(weights / expected), atol=1e-5)


def test_weights_with_their_code_are_quantized_at_once(run: Any, weights: Path, tmp_path: Path) -> None:
    arguments = ("--model", FACTORY, "--calib-data", str(weights / "row.npz"), "-o", "q.onnx", "--force")
    result = run("quantize", str(weights / "list.h5"), *arguments, "--effort", "fast", "--smallest")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize("name", ["places.weights.h5", "list.h5"])
@pytest.mark.parametrize("kwargs", ['{"width": 7}', '{"norm": false}', '{"extra": true}'])
def test_weights_of_another_model_are_refused(run: Any, weights: Path, tmp_path: Path, name: str, kwargs: str) -> None:
    result = run("convert", str(weights / name), "--model", FACTORY, "--model-kwargs", kwargs, "-o", "m.onnx")
    assert result.exit_code == 2, result.output
    assert "do not fit" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("no_model", "not a keras.Model"),
        ("without_inputs", "does not declare its inputs"),
        ("netwrok", "did you mean"),
    ],
)
def test_code_that_builds_no_usable_model_is_refused(run: Any, weights: Path, factory: str, said: str) -> None:
    result = run("convert", str(weights / "list.h5"), "--model", f"{NETWORKS}:{factory}")
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())


def test_weights_in_another_file_are_told_and_not_loaded(run: Any, weights: Path) -> None:
    path = str(weights / "outside.weights.h5")
    result = run("convert", path, "--model", FACTORY)
    assert result.exit_code == 2, result.output
    assert "takes values from another file" in " ".join(result.output.split())
    audited = run("audit", path, "--json")
    assert audited.exit_code == 1
    assert "another file" in audited.stdout


@pytest.mark.parametrize("name", ["places.weights.h5", "list.h5"])
def test_inspect_counts_the_weights(run: Any, weights: Path, name: str) -> None:
    facts = json.loads(run("inspect", str(weights / name), "--json").stdout)
    assert facts["parameters"] == 2 * (4 * 6 + 6) + 4 * 6 + 6 * 3 + 3
