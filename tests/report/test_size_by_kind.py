"""What takes the room in a model's files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from qtool.cli.app import app
from qtool.metrics.size_by_kind import model_size

Pair = Any  # the dataclass in conftest.py, which tests cannot import


def parts_of(path: Path) -> dict[str, tuple[int, int]]:
    size = model_size(path)
    assert size.bytes == sum(part.bytes for part in size.parts)
    return {part.kind: (part.bytes, part.tensors) for part in size.parts}


def save(path: Path, nodes: list[onnx.NodeProto], **arrays: np.ndarray) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_every_tensor_counts_as_what_it_is_for(tmp_path: Path) -> None:
    node = helper.make_node
    path = save(
        tmp_path / "m.onnx",
        [
            node("Gather", ["table", "ids"], ["rows"]),
            node("DequantizeLinear", ["w8", "w8_scale", "w8_zero"], ["w"], axis=1),
            node("Transpose", ["w"], ["wt"], perm=[0, 1]),
            node("MatMul", ["rows", "wt"], ["product"]),
            node("Add", ["product", "bias"], ["biased"]),
            node("DequantizeLinear", ["b32", "b_scale"], ["b"]),
            node("Gemm", ["biased", "w2", "b"], ["mixed"]),
            node("LayerNormalization", ["mixed", "gamma", "beta"], ["normal"]),
            node("Constant", [], ["half"], value=numpy_helper.from_array(np.full((2, 4), 0.5, np.float32))),
            node("Mul", ["normal", "half"], ["y"]),
        ],
        table=np.zeros((10, 6), np.float32),
        w8=np.zeros((6, 8), np.int8),
        w8_scale=np.ones(8, np.float32),
        w8_zero=np.zeros(8, np.int8),
        bias=np.zeros(8, np.float32),
        w2=np.zeros((8, 4), np.float32),
        b32=np.zeros(4, np.int32),
        b_scale=np.ones((), np.float32),
        gamma=np.ones(4, np.float32),
        beta=np.ones(4, np.float32),
        lost=np.zeros(100, np.float32),
    )
    parts = parts_of(path)
    assert parts.pop("graph")[0] > 0
    assert parts == {
        "integer weights": (48, 1),
        "float weights": (128 + 16, 2),
        "biases": (32 + 16 + 16, 3),
        "scales": (32 + 8 + 4, 3),
        "tables": (240, 1),
        "other constants": (32, 1),
        "never read": (400, 1),
    }


def test_integers_of_four_bits_take_half_a_byte(tmp_path: Path) -> None:
    stored = helper.make_tensor("w", TensorProto.INT4, [6, 8], np.zeros(48, np.int8))
    path = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"]),
            helper.make_node("MatMul", ["rows", "wide"], ["y"]),
        ],
        table=np.zeros((10, 6), np.float32),
        scale=np.ones((), np.float32),
    )
    model = onnx.load(path)
    model.graph.initializer.append(stored)
    onnx.save(model, path)
    assert parts_of(path)["integer weights"] == (24, 1)


def test_weights_beside_the_file_count_with_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["y"]),
    ]
    arrays = {"table": np.zeros((100, 60), np.float32), "w": np.zeros((60, 80), np.float32)}
    inside = parts_of(save(tmp_path / "m.onnx", nodes, **arrays))
    onnx.save(onnx.load(tmp_path / "m.onnx"), tmp_path / "e.onnx", save_as_external_data=True, size_threshold=0)
    outside = parts_of(tmp_path / "e.onnx")
    assert {**outside, "graph": None} == {**inside, "graph": None}
    assert outside["float weights"] == (60 * 80 * 4, 1)


@pytest.mark.parametrize("form", ["json", "table", "page"])
def test_reports_show_it_in_every_form(pair: Pair, tmp_path: Path, without_memory: None, form: str) -> None:
    page = tmp_path / "r.html"
    models = (pair.float_model, pair.quantized_model, "--data", pair.data, "--no-latency", "--html", page)
    result = CliRunner().invoke(app, ["report", *map(str, models), *(["--json"] if form == "json" else [])])
    assert result.exit_code == 0, result.stderr
    if form == "json":
        document = json.loads(result.stdout)
        for model in (document["float_model"], document["quantized_models"][0]):
            assert sum(part["bytes"] for part in model["size_parts"]) == model["size_bytes"]
        kinds = {part["kind"]: part["bytes"] for part in document["quantized_models"][0]["size_parts"]}
        assert kinds["integer weights"] == pair.weights.size
    else:
        text = result.stdout if form == "table" else page.read_text(encoding="utf-8")
        assert "integer weights" in text
        assert f"{4 * pair.weights.size / 1e3:.1f} kB" in text
