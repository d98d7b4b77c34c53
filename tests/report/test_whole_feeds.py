"""Models whose inputs count no samples alike: each file of the data is one run of its own."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from qtool.cli.app import app

pytestmark = pytest.mark.usefixtures("without_memory")

FUNCTION = """
import numpy as np

def samples():
    for number in range(5):
        random = np.random.default_rng(number)
        yield {
            "scales": random.random(2).astype("f4"),
            "text": random.random((1, 4 + number)).astype("f4"),
        }
"""


def model(path: Path, *, quantized: bool) -> Path:
    """A row of text times weights, scaled; the input that is no sample comes first."""
    weights = np.random.default_rng(0).normal(size=(1, 6)).astype(np.float32)
    stored = [numpy_helper.from_array(np.array([0], np.int64), "zero"), numpy_helper.from_array(np.float32(1), "one")]
    nodes = []
    if quantized:
        stored += [
            numpy_helper.from_array(np.rint(weights * 16).astype(np.int8), "stored"),
            numpy_helper.from_array(np.float32(1 / 16), "step"),
        ]
        nodes.append(helper.make_node("DequantizeLinear", ["stored", "step"], ["weights"]))
    else:
        stored.append(numpy_helper.from_array(weights, "weights"))
    nodes += [
        helper.make_node("Unsqueeze", ["text", "last"], ["column"]),
        helper.make_node("MatMul", ["column", "weights"], ["product"]),
        helper.make_node("Gather", ["scales", "zero"], ["scale"]),
        helper.make_node("Mul", ["product", "scale"], ["audio"]),
    ]
    stored.append(numpy_helper.from_array(np.array([-1], np.int64), "last"))
    graph = helper.make_graph(
        nodes,
        "speech",
        [
            helper.make_tensor_value_info("scales", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("text", TensorProto.FLOAT, ["n", "length"]),
        ],
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["n", "length", 6])],
        stored,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    folder = tmp_path / "samples"
    folder.mkdir()
    for number in range(5):
        random = np.random.default_rng(number)
        np.savez(
            folder / f"{number}.npz",
            scales=random.random(2).astype("f4"),
            text=random.random((1, 4 + number)).astype("f4"),
        )
    (tmp_path / "feeds.py").write_text(FUNCTION)
    return [str(model(tmp_path / f"{quantized}.onnx", quantized=quantized)) for quantized in (False, True)]


@pytest.mark.parametrize("data", ["samples", "feeds.py:samples"])
def test_each_file_is_one_run_where_nobody_gave_a_batch_size(tmp_path: Path, arguments: list[str], data: str) -> None:
    result = CliRunner().invoke(app, ["report", *arguments, "--data", str(tmp_path / data), "--rounds", "2", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["batch_size"] == 1
    assert report["datasets"][0]["samples"] == 5
    indices = [sample["index"] for sample in report["quantized_models"][0]["samples"]]
    assert sorted(indices) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("data", ["samples", "feeds.py:samples"])
def test_a_batch_size_that_was_given_is_still_refused(tmp_path: Path, arguments: list[str], data: str) -> None:
    result = CliRunner().invoke(app, ["report", *arguments, "--data", str(tmp_path / data), "--batch-size", "4"])
    assert result.exit_code == 2
    assert "share no batch axis" in " ".join(result.output.split())


@pytest.mark.parametrize(
    "command",
    [
        ["calibrate", "--calib-data"],
        ["quantize", "--target", "x86-avx2", "--effort", "fast", "-o", "q.onnx", "--calib-data"],
        ["sensitivity", "--calib-data"],
        ["optimize", "-o", "o.onnx", "--data"],
        ["convert", "--fp16", "-o", "h.onnx", "--calib-data"],
        ["inspect", "--flow", "product", "--data"],
        ["explain", "product", "--data"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_takes_such_data(
    tmp_path: Path, arguments: list[str], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *options = command
    path = arguments[1] if name == "explain" else arguments[0]
    result = CliRunner().invoke(app, [name, path, *options, str(tmp_path / "samples")])
    assert result.exit_code == 0, result.output
