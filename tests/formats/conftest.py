from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest


def _linear_graph(width: int) -> ir.Model:
    weights = np.arange(4 * width, dtype=np.float32).reshape(4, width)
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
            "linear",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", width])],
            [onnx.numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="tests",
    )
    return ir.from_proto(proto)


@pytest.fixture
def linear_graph() -> ir.Model:
    """One MatMul by a weight of 4 x 512 values, 8 KB."""
    return _linear_graph(512)


@pytest.fixture
def onnx_path(tmp_path: Path, linear_graph: ir.Model) -> Path:
    path = tmp_path / "linear.onnx"
    ir.save(linear_graph, path)
    return path


@pytest.fixture
def external_path(tmp_path: Path, linear_graph: ir.Model) -> Path:
    """The same model with its weight in ``linear.onnx.data``."""
    folder = tmp_path / "external"
    folder.mkdir()
    path = folder / "linear.onnx"
    ir.save(linear_graph, path, external_data="linear.onnx.data")
    return path
