"""``qtool quantize --locked``: files beside a model that hold its weights are held as well, by size and hash."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

MANIFEST = Path("net.int8.manifest.json")
Quantized = Callable[[], None]


@pytest.fixture
def external(run: Any, model: Path, data: Path) -> Path:
    """The network with its weights in a second file, quantized; returns that file."""
    graph = onnx.load(model)
    onnx.save(graph, model, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    assert run("quantize", model, "--calib-data", data, "--effort", "fast").code == 0
    return Path("net.onnx.data")


@pytest.fixture
def sharded(run: Any, tmp_path: Path) -> Path:
    """Weights in two files with an index, quantized; returns the second file."""
    import torch
    from safetensors.torch import save_file

    (tmp_path / "zoo.py").write_text("import torch\ndef build():\n    return torch.nn.Linear(6, 4)\n")
    torch.manual_seed(0)
    places = {}
    for number, (name, tensor) in enumerate(torch.nn.Linear(6, 4).state_dict().items(), 1):
        places[name] = f"net-{number}.safetensors"
        save_file({name: tensor}, tmp_path / places[name])
    Path("net.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    np.savez("d.npz", input=np.random.default_rng(0).normal(0, 1, (16, 6)).astype(np.float32))
    options = ("--model", "zoo.py:build", "--calib-data", "d.npz", "--effort", "fast")
    outcome = run("quantize", "net.safetensors.index.json", *options)
    assert outcome.code == 0, outcome.err
    return Path("net-2.safetensors")


def test_the_manifest_holds_the_file_with_the_weights(external: Path) -> None:
    (record,) = json.loads(MANIFEST.read_text())["inputs"]["model"]["weights"]
    assert record["path"] == "net.onnx.data"
    assert record["bytes"] == external.stat().st_size
    # The model on its own holds next to nothing.
    assert record["bytes"] > Path("net.onnx").stat().st_size / 2


@pytest.mark.parametrize("files", ["external", "sharded"])
def test_the_same_bytes_come_out_again_with_weights_in_other_files(
    run: Any, request: pytest.FixtureRequest, files: str
) -> None:
    request.getfixturevalue(files)
    before = Path("net.int8.onnx").read_bytes(), MANIFEST.read_bytes()
    outcome = run("quantize", "--locked", MANIFEST, "--force")
    assert outcome.code == 0, outcome.err
    assert (Path("net.int8.onnx").read_bytes(), MANIFEST.read_bytes()) == before


@pytest.mark.parametrize("files", ["external", "sharded"])
def test_another_byte_in_them_is_named_with_its_file(run: Any, request: pytest.FixtureRequest, files: str) -> None:
    weights: Path = request.getfixturevalue(files)
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    outcome = run("quantize", "--locked", MANIFEST, "--force")
    assert outcome.code == 2
    assert f"the file {weights} with weights of the model" in outcome.err
    assert f"({len(before):,} bytes), not" in outcome.err
    assert outcome.err.count(" has the hash ") == 1
    assert "checking the result" not in outcome.err


def test_another_size_is_named(run: Any, external: Path) -> None:
    size = external.stat().st_size
    external.write_bytes(external.read_bytes() + bytes(100))
    outcome = run("quantize", "--locked", MANIFEST, "--force")
    assert outcome.code == 2
    assert f"({size + 100:,} bytes), not" in outcome.err
    assert f"({size:,} bytes)\n" in outcome.err


@pytest.mark.parametrize("files", ["external", "sharded"])
def test_a_missing_file_is_named(run: Any, request: pytest.FixtureRequest, files: str) -> None:
    weights: Path = request.getfixturevalue(files)
    weights.unlink()
    outcome = run("quantize", "--locked", MANIFEST, "--force")
    assert outcome.code == 2
    assert str(weights) in outcome.err
    assert "is missing" in outcome.err


def test_a_model_that_moved_with_its_weights_will_do(run: Any, external: Path, tmp_path: Path) -> None:
    before = Path("net.int8.onnx").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    for name in ("net.onnx", external.name):
        Path(name).rename(tmp_path / "elsewhere" / name)
    outcome = run("quantize", "elsewhere/net.onnx", "--locked", MANIFEST, "--force")
    assert outcome.code == 0, outcome.err
    assert Path("net.int8.onnx").read_bytes() == before
