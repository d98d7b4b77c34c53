"""The samples do what their files say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

Python = Callable[..., CompletedProcess[str]]

LARGEST_BYTES = 1_000_000


@pytest.mark.slow
def test_the_main_job_makes_a_smaller_model_that_is_as_accurate(clone: Path, python: Python, quickstart: str) -> None:
    (clone / "demo-output").mkdir()
    (clone / "demo-output" / "mnist_cnn.onnx").write_text("of an older run")
    result = python("samples/01_main_job.py")
    assert result.returncode == 0, result.stderr
    commands = [line for line in result.stdout.splitlines() if line.startswith("$ qtool ")]
    assert [line.split()[2] for line in commands] == ["convert", "calibrate", "quantize", "report"]
    assert "\n".join(commands) in quickstart
    floating, integer = (clone / "demo-output" / name for name in ("mnist_cnn.onnx", "mnist_cnn.int8.onnx"))
    assert integer.stat().st_size < 0.4 * floating.stat().st_size
    report = python(
        *("-m", "qtool", "report", str(floating), str(integer), "--data", "samples/digits_eval.npz"),
        *("--json", "--no-latency"),
    )
    figures = json.loads(report.stdout)["figures"]
    assert figures["top1_float"] > 98
    assert abs(figures["top1_drop"]) <= 0.3
    assert figures["sqnr_db"] > 30


def test_the_main_job_stops_at_the_first_command_that_fails(clone: Path, python: Python) -> None:
    (clone / "samples" / "digits_calib.npz").unlink()
    result = python("samples/01_main_job.py", "elsewhere")
    assert result.returncode == 2
    assert "digits_calib.npz" in result.stderr
    assert result.stdout.count("$ qtool") == 1


def test_the_data_is_small_and_complete(root: Path) -> None:
    shipped = [root / "samples" / name for name in ("mnist_cnn.pth", "digits_calib.npz", "digits_eval.npz")]
    assert sum(path.stat().st_size for path in shipped) < LARGEST_BYTES
    with np.load(shipped[1]) as calib, np.load(shipped[2]) as evaluation:
        assert calib["image"].shape == (300, 1, 28, 28)
        assert evaluation["image"].shape == (2000, 1, 28, 28)
        assert evaluation["image"].dtype == np.float32
        assert set(evaluation["_label"]) == set(range(10))
        seen = {image.tobytes() for image in calib["image"]}
        assert not [image for image in evaluation["image"] if image.tobytes() in seen]


@pytest.mark.slow
def test_a_merged_adapter_makes_the_model_read_inverted_digits(clone: Path, python: Python) -> None:
    result = python("samples/02_merge_adapter.py")
    assert result.returncode == 0, result.stderr
    commands = [line.split()[2] for line in result.stdout.splitlines() if line.startswith("$ qtool ")]
    assert commands == ["merge-lora", "convert", "quantize", "report"]
    results = [f"demo-output/{name}" for name in ("inverted.onnx", "inverted.int8.onnx")]
    data = ("--data", "demo-output/inverted_eval.npz", "--json", "--no-latency")
    report = python("-m", "qtool", "report", *results, *data)
    figures = json.loads(report.stdout)["figures"]
    assert figures["top1_float"] > 95
    assert figures["top1_drop"] < 0.5


@pytest.mark.slow
def test_training_writes_all_that_the_main_job_needs(clone: Path, python: Python) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(256, dtype=np.uint8) % 10
    # Each digit is a bright row of its own: learned in a moment.
    images = rng.integers(0, 40, (256, 28, 28), np.uint8)
    images[np.arange(256), 4 + 2 * labels.astype(int)] = 250
    np.savez(clone / "digits.npz", train_image=images, train_label=labels, test_image=images, test_label=labels)
    (clone / "made").mkdir()
    result = python("samples/train_mnist_cnn.py", "digits.npz", "made")
    assert result.returncode == 0, result.stderr
    assert "test digits" in result.stdout
    made = {path.name for path in (clone / "made").iterdir()}
    assert made == {"mnist_cnn.pth", "digits_calib.npz", "digits_eval.npz"}
    with np.load(clone / "made" / "digits_eval.npz") as evaluation:
        np.testing.assert_allclose(evaluation["image"][:, 0] * 255, images, atol=1e-4)
        assert evaluation["_label"].tolist() == labels.tolist()
    assert python("-c", _LOADS).returncode == 0


_LOADS = """
import sys
import torch
sys.path.insert(0, "samples")
from mnist_cnn import build
build().load_state_dict(torch.load("made/mnist_cnn.pth", weights_only=True))
"""


@pytest.mark.slow
def test_an_adapter_turns_a_language_model_around_and_four_bits_keep_that(clone: Path, python: Python) -> None:
    for package in ("peft", "transformers", "onnxruntime_genai"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    result = python("samples/04_language_model.py")
    assert result.returncode == 0, result.stderr
    commands = [line.split()[2] for line in result.stdout.splitlines() if line.startswith("$ qtool ")]
    assert commands == ["merge-lora", "convert", "quantize", "report"]
    # What the prompt "nine eight seven" is followed by, in float and in four bits.
    assert sum("six five four three two one" in line for line in result.stdout.splitlines()) == 2
    made = clone / "demo-output" / "language-model"
    small, floating = (
        made / name for name in ("counting-down-4-bits/model.onnx", "counting-down-onnx/model.onnx.data")
    )
    assert small.stat().st_size < 0.4 * floating.stat().st_size


@pytest.mark.slow
def test_training_takes_back_what_weights_of_4_bits_lose(clone: Path, python: Python) -> None:
    result = python("samples/05_qat.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (clone / "demo-output" / "digits.qat.onnx").is_file()
