"""Models that do not run on inputs that are made up: what is said where nobody gave data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from qtool.cli.app import app

RANDOM = np.random.default_rng(0)


def stored(model: onnx.ModelProto, path: Path) -> Path:
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def durations(path: Path) -> Path:
    """Repeats values as often as an input says, which random numbers say badly: the count must come out as 12."""
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["hidden"]),
        helper.make_node("ReduceSum", ["times"], ["total"], keepdims=1),
        helper.make_node("Expand", ["one", "total"], ["many"]),
        helper.make_node("Reshape", ["many", "twelve"], ["row"]),
        helper.make_node("ReduceSum", ["row"], ["length"], keepdims=0),
        helper.make_node("Mul", ["hidden", "length"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "durations",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8]),
            helper.make_tensor_value_info("times", TensorProto.INT64, [3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [
            numpy_helper.from_array(RANDOM.normal(size=(8, 8)).astype(np.float32), "weights"),
            numpy_helper.from_array(np.ones((1,), np.float32), "one"),
            numpy_helper.from_array(np.array([12], np.int64), "twelve"),
        ],
    )
    return stored(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def one_row_only(path: Path) -> Path:
    """Names its batch, and squeezes it away inside."""
    nodes = [
        helper.make_node("Squeeze", ["x", "first"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["length", 8])],
        [
            numpy_helper.from_array(RANDOM.normal(size=(8, 8)).astype(np.float32), "weights"),
            numpy_helper.from_array(np.array([0], np.int64), "first"),
        ],
    )
    return stored(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "--fp16"],
        ["convert", "--bf16"],
        ["convert", "--opset", "18"],
        ["optimize"],
        ["quantize", "--scheme", "dynamic"],
    ],
    ids=" ".join,
)
def test_the_inputs_are_blamed_that_were_made_up(tmp_path: Path, command: list[str]) -> None:
    path, output = durations(tmp_path / "m.onnx"), tmp_path / "out.onnx"
    name, *options = command
    result = CliRunner().invoke(app, [name, str(path), *options, "-o", str(output)])
    said = " ".join(result.output.split())
    assert result.exit_code == 2, result.output
    assert "the model does not run on random inputs" in said
    assert ("give real ones with --data" if name == "optimize" else "give real ones with --calib-data") in said
    assert not output.exists()


@pytest.mark.parametrize("option", [["--fp16"], ["--opset", "18"]], ids=" ".join)
def test_real_inputs_are_taken_then(tmp_path: Path, option: list[str]) -> None:
    path = durations(tmp_path / "m.onnx")
    data = tmp_path / "data"
    data.mkdir()
    np.savez(data / "0.npz", x=RANDOM.normal(size=(1, 8)).astype(np.float32), times=np.array([5, 4, 3]))
    result = CliRunner().invoke(
        app, ["convert", str(path), *option, "-o", str(tmp_path / "o.onnx"), "--calib-data", str(data)]
    )
    assert result.exit_code == 0, result.output


def test_a_model_is_turned_back_all_the_same(tmp_path: Path) -> None:
    path, data = durations(tmp_path / "m.onnx"), tmp_path / "data"
    data.mkdir()
    for number in range(8):
        random = np.random.default_rng(number)
        np.savez(data / f"{number}.npz", x=random.normal(size=(1, 8)).astype(np.float32), times=np.array([5, 4, 3]))
    quantized, back = str(tmp_path / "q.onnx"), tmp_path / "back.onnx"
    options = ["--target", "x86-avx2", "--smallest", "--effort", "fast", "-o", quantized]
    assert CliRunner().invoke(app, ["quantize", str(path), "--calib-data", str(data), *options]).exit_code == 0
    result = CliRunner().invoke(app, ["dequantize", quantized, "-o", str(back), "--json"])
    assert result.exit_code == 0, result.output
    assert "not compared: the model does not run on random inputs" in " ".join(result.stderr.split())
    assert json.loads(result.stdout)["largest_difference"] == {}
    feed = dict(np.load(data / "0.npz"))
    found, expected = (
        ort.InferenceSession(name, providers=["CPUExecutionProvider"]).run(None, feed)[0] for name in (back, path)
    )
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_batch_of_one_is_tried_before_giving_up(tmp_path: Path) -> None:
    path = one_row_only(tmp_path / "m.onnx")
    result = CliRunner().invoke(app, ["convert", str(path), "--fp16", "-o", str(tmp_path / "o.onnx")])
    assert result.exit_code == 0, result.output
    assert "compared with batch=1" in " ".join(result.output.split())


SPEECH = """
import torch


class Speech(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, text, scales):
        if text.shape[0] != 1:
            raise ValueError("one text at a time")
        return self.layer(text) * scales[0] + scales[1]
"""


@pytest.mark.parametrize("shaped", [True, False])
def test_modules_take_data_without_a_batch_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shaped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    Path("speech.py").write_text(SPEECH)
    names: dict[str, Any] = {}
    exec(SPEECH, names)
    module = names["Speech"]().eval()
    torch.save(module.state_dict(), "w.pth")
    Path("data").mkdir()
    text, scales = RANDOM.normal(size=(1, 7, 4)).astype(np.float32), np.array([0.5, 2], np.float32)
    np.savez("data/0.npz", text=text, scales=scales)
    shapes = ["--input-shape", "text=1,length,4", "--input-shape", "scales=2"] if shaped else []
    arguments = ["w.pth", "--model", "speech.py:Speech", *shapes, "--calib-data", "data", "-o", "m.onnx"]
    result = CliRunner().invoke(app, ["convert", *arguments])
    if not shaped:
        assert result.exit_code == 2
        assert "--input-shape" in result.output
        return
    assert result.exit_code == 0, result.output
    found = ort.InferenceSession("m.onnx").run(None, {"text": text, "scales": scales})[0]
    expected = module(torch.from_numpy(text), torch.from_numpy(scales)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
