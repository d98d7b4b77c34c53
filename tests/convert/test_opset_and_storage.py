import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtool.runtime.graphs import open_graph
from qtool.runtime.session import Session


@pytest.fixture
def model(folder: Path) -> Path:
    """Two layers of 40,000 weights each, the second one in a function."""
    random = np.random.default_rng(0)
    weights = {name: (random.standard_normal((200, 200)) / 14).astype(np.float32) for name in ("v", "w")}
    layer = helper.make_function(
        "own",
        "Layer",
        ["a", "b"],
        ["c"],
        [helper.make_node("MatMul", ["a", "b"], ["m"]), helper.make_node("Relu", ["m"], ["c"])],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"], name="first"),
        helper.make_node("Layer", ["h", "w"], ["y"], domain="own", name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 200])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 200])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, functions=[layer], opset_imports=opsets, ir_version=8), path)
    return path


def outputs(path: Path) -> np.ndarray:
    x = np.random.default_rng(2).standard_normal((3, 200)).astype(np.float32)
    value: np.ndarray = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return value


@pytest.mark.parametrize("opset", [15, 21])
def test_functions_are_inlined_on_the_way_up_and_down(run: Any, model: Path, opset: int) -> None:
    result = run("m.onnx", "--opset", str(opset), "-o", "moved.onnx", "--json")
    assert result.exit_code == 0, result.output
    moved = onnx.load("moved.onnx")
    assert not moved.functions
    assert [node.op_type for node in moved.graph.node] == ["MatMul", "MatMul", "Relu"]
    np.testing.assert_allclose(outputs(Path("moved.onnx")), outputs(model), atol=1e-5)
    assert [one["sizes"]["batch"] for one in json.loads(result.stdout)["comparisons"]] == [2, 3, 1]


def test_weights_move_to_a_file_of_their_own_and_back(run: Any, model: Path) -> None:
    assert run("m.onnx", "--external-data", "-o", "apart.onnx").exit_code == 0
    assert Path("apart.onnx").stat().st_size < 10_000
    assert Path("apart.onnx.data").stat().st_size >= 2 * 200 * 200 * 4
    np.testing.assert_array_equal(outputs(Path("apart.onnx")), outputs(model))
    assert run("apart.onnx", "--opset", "18", "-o", "together.onnx").exit_code == 0
    assert not Path("together.onnx.data").exists()
    np.testing.assert_allclose(outputs(Path("together.onnx")), outputs(model), atol=1e-5)


def test_weights_move_to_several_files_that_read_back(run: Any, model: Path) -> None:
    from qtool.formats.onnx.external_data import Storage
    from qtool.formats.onnx.onnx_file import OnnxFile

    file = OnnxFile()
    file.write(file.read(model), Path("parts.onnx"), Storage(external=True, max_shard_bytes=200_000))
    parts = [path for path in Path().iterdir() if path.name.endswith(".data")]
    assert len(parts) == 2
    assert all(path.stat().st_size <= 200_000 for path in parts)
    np.testing.assert_array_equal(outputs(Path("parts.onnx")), outputs(model))
    result = run("parts.onnx", "--opset", "18", "-o", "whole.onnx")
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(outputs(Path("whole.onnx")), outputs(model), atol=1e-5)


def test_shards_and_external_data_can_go_with_half_precision(run: Any, model: Path) -> None:
    arguments = ("--fp16", "--external-data", "--max-shard-mb", "1", "-o", "half.onnx", "--json")
    result = run("m.onnx", *arguments)
    assert result.exit_code == 0, result.output
    data = [path for path in Path().iterdir() if path.name.endswith(".data")]
    assert 2 * 200 * 200 * 2 <= sum(path.stat().st_size for path in data) < 2 * 200 * 200 * 3
    assert json.loads(result.stdout)["output_bytes"] >= 2 * 200 * 200 * 2


def test_weights_that_stay_in_their_files_compute_the_same(run: Any, model: Path) -> None:
    assert run("m.onnx", "--external-data", "-o", "apart.onnx").exit_code == 0
    x = np.random.default_rng(2).standard_normal((3, 200)).astype(np.float32)
    np.testing.assert_allclose(Session(Path("apart.onnx"), mapped=True).run({"x": x})["y"], outputs(model), atol=1e-5)
    with open_graph(ir.load(model), mapped=True) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], outputs(model), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("m.onnx", "--max-shard-mb", "5"), "--max-shard-mb has no effect without"),
        (("weights.pth", "--to", "safetensors", "--external-data"), "--external-data has no effect"),
        (("m.onnx",), "is ONNX already"),
        (("m.onnx", "--opset", "5"), "opset 5 is not supported"),
    ],
)
def test_options_of_storage_that_make_no_sense_are_refused(
    run: Any, model: Path, arguments: tuple[str, ...], said: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output
