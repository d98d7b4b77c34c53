"""``qtool quantize --locked``: the same bytes again, or what differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MANIFEST = Path("net.int8.manifest.json")


@pytest.fixture
def change(run: Any) -> Callable[..., None]:
    """Changes one entry of the manifest."""

    def edit(*keys: str, to: object) -> None:
        document = json.loads(MANIFEST.read_text())
        entry = document
        for key in keys[:-1]:
            entry = entry[key]
        entry[keys[-1]] = to
        MANIFEST.write_text(json.dumps(document))

    return edit


@pytest.mark.parametrize(
    "options",
    [
        ("--effort", "balanced"),
        ("--effort", "fast", "--method", "percentile", "--exclude", "/c2/*", "--exclude", "Add"),
        ("--effort", "fast", "--per-tensor", "--no-bias-correction", "--limit", "9", "--activation-type", "s8"),
        ("--scheme", "dynamic", "--per-tensor"),
    ],
)
def test_the_same_bytes_come_out_again(run: Any, model: Path, data: Path, options: tuple[str, ...]) -> None:
    inputs = () if "dynamic" in options else ("--calib-data", data)
    outcome = run("quantize", model, *inputs, *options)
    assert outcome.code == 0, outcome.err
    before = Path("net.int8.onnx").read_bytes(), MANIFEST.read_bytes()
    Path("net.int8.onnx").write_bytes(b"gone")
    outcome = run("quantize", "--locked", MANIFEST, "--force")
    assert outcome.code == 0, outcome.err
    assert (Path("net.int8.onnx").read_bytes(), MANIFEST.read_bytes()) == before


def test_weights_and_their_factory_are_repeated(run: Any, tmp_path: Path) -> None:
    import torch

    (tmp_path / "zoo.py").write_text("import torch\ndef build(width):\n    return torch.nn.Linear(6, width)\n")
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(6, 4).state_dict(), tmp_path / "net.pth")
    np.savez(tmp_path / "d.npz", input=np.random.default_rng(0).normal(0, 1, (16, 6)).astype(np.float32))
    options = ("--model", "zoo.py:build", "--model-kwargs", '{"width": 4}', "--calib-data", "d.npz", "--effort", "fast")
    outcome = run("quantize", "net.pth", *options)
    assert outcome.code == 0, outcome.err
    assert {"torch", "onnxscript"} <= json.loads(MANIFEST.read_text())["versions"].keys()
    before = Path("net.int8.onnx").read_bytes()
    outcome = run("quantize", "--locked", MANIFEST, "-o", "again.onnx", "--force")
    assert outcome.code == 0, outcome.err
    assert Path("again.onnx").read_bytes() == before


def test_settings_that_counted_are_recorded_and_those_of_today_left_aside(run: Any, model: Path, data: Path) -> None:
    Path("qtool.toml").write_text('[quantize]\nmethod = "mse"\neffort = "fast"\n')
    assert run("quantize", model, "--calib-data", data).code == 0
    arguments = " ".join(json.loads(MANIFEST.read_text())["lock"]["arguments"])
    assert "--effort fast --method mse" in arguments
    Path("qtool.toml").write_text('[quantize]\nmethod = "minmax"\neffort = "best"\n')
    assert run("quantize", "--locked", MANIFEST, "--force").code == 0


def test_inputs_that_moved_will_do_if_they_have_the_same_bytes(
    run: Any, model: Path, data: Path, make_images: Any, tmp_path: Path
) -> None:
    assert run("quantize", model, "--calib-data", data, "--effort", "fast").code == 0
    before = Path("net.int8.onnx").read_bytes()
    data.rename(tmp_path / "moved.npz")
    model.rename(tmp_path / "moved.onnx")
    outcome = run("quantize", "--locked", MANIFEST, "--force")
    assert outcome.code == 2
    assert "the model net.onnx is missing" in outcome.err
    assert "the data calib.npz is missing" in outcome.err
    locked = ("quantize", "moved.onnx", "--locked", MANIFEST, "--force", "--calib-data")
    assert run(*locked, "moved.npz").code == 0
    assert Path("net.int8.onnx").read_bytes() == before
    np.savez(tmp_path / "other.npz", image=make_images(40, seed=9))
    outcome = run(*locked, "other.npz")
    assert outcome.code == 2
    assert "the data other.npz has the hash" in outcome.err


def test_other_versions_are_named_before_anything_runs(run: Any, model: Path, data: Path, change: Any) -> None:
    assert run("quantize", model, "--calib-data", data, "--effort", "fast").code == 0
    change("versions", "onnxruntime", to="0.1")
    change("versions", "numpy", to="0.2")
    outcome = run("quantize", "--locked", MANIFEST, "--force")
    assert outcome.code == 2
    assert ", not 0.1" in outcome.err
    assert ", not 0.2" in outcome.err
    assert "checking the result" not in outcome.err


def test_another_option_is_named(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--calib-data", data, "--effort", "fast", "--method", "mse").code == 0
    locked = ("quantize", "--locked", MANIFEST, "--force")
    outcome = run(*locked, "--method", "minmax")
    assert outcome.code == 2
    assert "--method is minmax here, and mse in the manifest" in outcome.err
    assert run(*locked, "--method", "mse").code == 0
    assert "--exclude is" in run(*locked, "--exclude", "Add").err


def test_a_result_with_other_bytes_is_not_written(run: Any, model: Path, data: Path, change: Any) -> None:
    assert run("quantize", model, "--calib-data", data, "--effort", "fast").code == 0
    before = Path("net.int8.onnx").read_bytes()
    change("quantized_model", "sha256", to="ab" * 32)
    change("lock", "processor", to="another one")
    outcome = run("quantize", "--locked", MANIFEST, "--force")
    assert outcome.code == 2
    assert "not abababababab" in outcome.err
    assert "not 'another one'" in outcome.err
    assert Path("net.int8.onnx").read_bytes() == before


def test_a_manifest_without_options_is_refused(run: Any, model: Path, data: Path, change: Any) -> None:
    assert run("quantize", model, "--calib-data", data, "--effort", "fast").code == 0
    change("lock", to={})
    outcome = run("quantize", "--locked", MANIFEST, "--force")
    assert outcome.code == 2
    assert "recorded no options" in outcome.err


def test_trust_never_comes_out_of_a_manifest(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--calib-data", data, "--effort", "fast", "--trust-pickle").code == 0
    assert "--trust-pickle" not in json.loads(MANIFEST.read_text())["lock"]["arguments"]
