"""Files of a newer format or opset than the runtime's come down, and results are what old runtimes read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
EXPECTED = np.maximum(X @ W, 0)


def save(name: str, *, ir_version: int, opset: int) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(W, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.save(model, name)


def output(name: str) -> np.ndarray:
    value: np.ndarray = ort.InferenceSession(name, providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]
    return value


@pytest.mark.parametrize("opset", [9, 13, 17, 18])
@pytest.mark.parametrize(("ir_version", "have"), [(14, 17), (50, 17), (14, onnx.defs.onnx_opset_version()), (13, 23)])
def test_a_file_that_is_too_new_comes_down(run: Any, folder: Path, ir_version: int, have: int, opset: int) -> None:
    save("new.onnx", ir_version=ir_version, opset=have)
    result = run("new.onnx", "--opset", str(opset), "-o", "old.onnx", "--json")
    assert result.exit_code == 0, result.output
    assert max(one["relative"] for one in _outputs(json.loads(result.stdout))) < 1e-5
    model = onnx.load("old.onnx")
    assert model.opset_import[0].version == opset
    assert model.ir_version == max(4, helper.find_min_ir_version_for(model.opset_import))
    np.testing.assert_allclose(output("old.onnx"), EXPECTED, atol=1e-6)


@pytest.mark.parametrize("options", [("--fp16",), ("--external-data",)])
def test_a_format_that_is_too_new_is_no_obstacle(run: Any, folder: Path, options: tuple[str, ...]) -> None:
    save("new.onnx", ir_version=50, opset=17)
    result = run("new.onnx", *options, "-o", "old.onnx")
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(output("old.onnx"), EXPECTED, atol=2e-2)


def test_operators_that_nobody_knows_yet_are_refused(run: Any, folder: Path) -> None:
    save("new.onnx", ir_version=10, opset=99)
    result = run("new.onnx", "--opset", "17", "-o", "old.onnx")
    assert result.exit_code == 2
    assert "opset 99" in result.stderr
    assert "newer onnx" in result.stderr


@pytest.mark.parametrize("opset", [9, 13, 18, 23])
def test_exports_of_torch_are_in_the_format_of_their_opset(run: Any, folder: Path, opset: int) -> None:
    torch.save(torch.nn.Linear(4, 3).state_dict(), "linear.pth")
    arguments = ("--model", "torch.nn:Linear", "--model-kwargs", '{"in_features": 4, "out_features": 3}')
    result = run("linear.pth", *arguments, "--input-shape", "x=batch,4", "--opset", str(opset), "-o", "t.onnx")
    assert result.exit_code == 0, result.output
    model = onnx.load("t.onnx")
    assert model.ir_version == max(4, helper.find_min_ir_version_for(model.opset_import))


def _outputs(report: Any) -> list[Any]:
    return [found for one in report["comparisons"] for found in one["outputs"]]
