"""Files that bring their program along: TorchScript, torch.export, whole modules; and modules with odd signatures."""

import argparse
import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from qtool.cli.app import app
from qtool.formats.library_noise import quiet_libraries

pytestmark = pytest.mark.slow

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


class Pair(torch.nn.Module):
    """Returns a dictionary, and takes an input that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        hidden = torch.relu(self.layer(x))
        return {"hidden": hidden if scale is None else hidden * scale, "total": x.sum(1)}


@pytest.fixture
def pair() -> Pair:
    torch.manual_seed(1)
    return Pair().eval()


def opened(path: str) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def check(path: str, pair: Pair) -> ort.InferenceSession:
    """Checks that the graph computes what the module does, and returns it."""
    session = opened(path)
    (name,) = [value.name for value in session.get_inputs()]
    with torch.no_grad():
        expected = pair(torch.from_numpy(X))
    for value, wanted in zip(session.run(None, {name: X}), expected.values(), strict=True):
        np.testing.assert_allclose(value, wanted.numpy(), atol=1e-5)
    return session


@pytest.mark.parametrize("scripted", [False, True])
def test_torchscript_needs_shapes_and_no_model(run: Any, pair: Pair, scripted: bool) -> None:
    with quiet_libraries():
        program = torch.jit.script(pair) if scripted else torch.jit.trace(pair, torch.ones(2, 4), strict=False)
        torch.jit.save(program, "program.pt")
    assert run("program.pt").exit_code == 2
    result = run("program.pt", "--input-shape", "x=batch,4")
    assert result.exit_code == 0, result.output
    assert "TorchScript" in result.stdout
    session = check("program.onnx", pair)
    assert session.get_inputs()[0].shape == ["batch", 4]
    if scripted:
        result = run("program.pt", "--input-shape", "x=batch,4", "--input-shape", "scale=1", "-o", "two.onnx")
        assert result.exit_code == 0, result.output
        (hidden, _) = opened("two.onnx").run(None, {"x": X, "scale": np.float32([2])})
        np.testing.assert_allclose(hidden, 2 * pair(torch.from_numpy(X))["hidden"].detach().numpy(), atol=1e-5)


def test_a_scripted_program_normalizes_as_it_does_after_training(run: Any) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).eval()
    torch.nn.init.uniform_(net[1].running_var)
    with quiet_libraries():
        torch.jit.save(torch.jit.script(net), "program.pt")
    result = run("program.pt", "--input-shape", "x=batch,4")
    assert result.exit_code == 0, result.output
    (value,) = opened("program.onnx").run(None, {"x": X})
    np.testing.assert_allclose(value, net(torch.from_numpy(X)).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("keywords", [False, True])
def test_an_exported_program_needs_nothing(run: Any, pair: Pair, keywords: bool) -> None:
    shapes = {"x": {0: torch.export.Dim("n")}}
    x = torch.ones(2, 4)
    with quiet_libraries():
        if keywords:
            program = torch.export.export(pair, (), {"x": x}, dynamic_shapes=shapes)
        else:
            program = torch.export.export(pair, (x,), dynamic_shapes=shapes)
        torch.export.save(program, "program.pt2")
    result = run("program.pt2", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["inputs"] == ["x (batch, 4)"]
    assert report["outputs"] == ["hidden (batch, 3)", "total (batch)"]
    check("program.onnx", pair)
    shown = CliRunner().invoke(app, ["inspect", "program.pt2"])
    assert shown.exit_code == 0
    assert "x float32 (batch, 4)" in shown.stdout
    assert "layer.weight" in shown.stdout
    assert run("program.pt2", "--input-shape", "x=rows,4", "--force").exit_code == 0
    assert opened("program.onnx").get_inputs()[0].shape == ["rows", 4]


def test_the_weights_of_a_program_can_be_had_alone(run: Any, pair: Pair) -> None:
    with quiet_libraries():
        torch.export.save(torch.export.export(pair, (torch.ones(2, 4),)), "program.pt2")
        torch.jit.save(torch.jit.trace(pair, torch.ones(2, 4), strict=False), "program.pt")
    for source in ("program.pt2", "program.pt"):
        result = run(source, "--to", "safetensors", "-o", "weights.safetensors", "--force")
        assert result.exit_code == 0, result.output
        stored = safetensors.torch.load_file("weights.safetensors")
        assert {name: value.tolist() for name, value in stored.items()} == {
            name: value.tolist() for name, value in pair.state_dict().items()
        }


CODE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)
"""


@pytest.mark.parametrize("key", [None, "model", "ema"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_module_opens_where_it_is_trusted(run: Any, folder: Path, key: str | None, legacy: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    stored = module.half() if key == "ema" else module
    torch.save({key: stored, "epoch": 1} if key else stored, "whole.pt", _use_new_zipfile_serialization=not legacy)
    result = run("whole.pt", "--input-shape", "x=batch,4")
    assert result.exit_code == 2
    assert "--trust-pickle" in result.stderr
    result = run("whole.pt", "--trust-pickle", "--input-shape", "x=batch,4")
    assert result.exit_code == 0, result.output
    assert "whole module Sequential" in result.stdout
    with torch.no_grad():
        expected = module.float()(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(opened("whole.onnx").run(None, {"x": X})[0], expected, atol=1e-5)


def test_a_trusted_module_without_its_code_says_what_is_missing(
    run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "gone.py").write_text(CODE)
    monkeypatch.syspath_prepend(folder)
    torch.save(importlib.import_module("gone").Net(), "whole.pt")
    (folder / "gone.py").unlink()
    monkeypatch.delitem(sys.modules, "gone")
    result = run("whole.pt", "--trust-pickle", "--input-shape", "x=batch,4")
    assert result.exit_code == 2
    assert "No module named 'gone'" in result.stderr
    assert "state_dict()" in result.stderr


def test_single_classes_can_be_allowed(run: Any, folder: Path) -> None:
    state = torch.load("weights.pth", weights_only=True)
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=1)}, "mixed.pth")
    to = ("--to", "safetensors", "--force")
    refused = run("mixed.pth", *to)
    assert refused.exit_code == 2
    assert "--allow-global argparse.Namespace" in refused.stderr
    assert run("mixed.pth", *to, "--allow-global", "argparse.Namespace").exit_code == 0
    assert set(safetensors.torch.load_file("mixed.safetensors")) == set(state)
    assert run("mixed.pth", *to, "--allow-global", "argparse.ArgumentParser").exit_code == 2


def test_numbers_of_numpy_beside_the_weights_can_be_allowed(run: Any, folder: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "best": np.float64(0.9), "seen": np.arange(3)}, "m.pth")
    said = run("m.pth", "--to", "safetensors").stderr
    names = re.findall(r"--allow-global ([\w.]+)", said)
    assert {"numpy.dtype", "numpy.ndarray"} <= set(names)
    allowed = [part for name in names for part in ("--allow-global", name)]
    result = run("m.pth", "--to", "safetensors", *allowed)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--allow-global", "Namespace"), "is not a class of a package"),
        (("--allow-global", "os.system()"), "is not a class of a package"),
        (("--allow-global", "argparse.Nothing"), "there is no argparse.Nothing"),
        (
            ("--allow-global", "argparse.Namespace", "--trust-pickle"),
            "has no effect with --trust-pickle",
        ),
    ],
)
def test_wrong_trust_is_explained(run: Any, folder: Path, options: tuple[str, ...], said: str) -> None:
    result = run("weights.pth", "--to", "safetensors", *options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_attack_is_not_allowed_by_name(run: Any, folder: Path) -> None:
    (folder / "m.pth").write_bytes(b"")
    torch.save({"w": torch.ones(1), "x": Attack()}, "m.pth")
    result = run("m.pth", "--to", "safetensors", "--allow-global", "os.mkdir", "--allow-global", "posix.mkdir")
    assert result.exit_code == 2
    assert "as an attack does" in result.stderr
    assert not (folder / "ran").exists()


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


LAYERS = """
import torch

class Recurrent(torch.nn.Module):
    def __init__(self, kind="LSTM"):
        super().__init__()
        self.cell = getattr(torch.nn, kind)(4, 6, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.cell(x)

def encoder():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
"""


@pytest.mark.parametrize(
    ("factory", "kwargs", "width", "outputs"),
    [
        pytest.param("Recurrent", '{"kind": "LSTM"}', 4, 3, marks=pytest.mark.slow),
        pytest.param("Recurrent", '{"kind": "GRU"}', 4, 2, marks=pytest.mark.slow),
        ("encoder", "{}", 8, 1),
    ],
)
def test_sequence_models_become_graphs(
    run: Any, folder: Path, factory: str, kwargs: str, width: int, outputs: int
) -> None:
    (folder / "layers.py").write_text(LAYERS)
    scope: dict[str, Any] = {"__name__": "layers_reference"}
    exec(LAYERS, scope)
    torch.save(scope[factory](**json.loads(kwargs)).state_dict(), "layers.pth")
    result = run(
        *("layers.pth", "--model", f"layers.py:{factory}", "--model-kwargs", kwargs),
        *("--input-shape", f"x=batch,steps,{width}", "--json"),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert len(report["outputs"]) == outputs
    assert "steps" in report["outputs"][0]
    assert {tuple(one["sizes"].values()) for one in report["comparisons"]} == {(2, 64), (3, 128), (1, 64)}
