from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtool.errors import InputError
from qtool.metrics.memory import Memory, measure_memory
from qtool.metrics.size import model_bytes

MEBI = 1 << 20


def scaling(weights: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "scaling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [weights.shape[-1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(weights.shape))],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_size_is_that_of_the_file(tmp_path: Path) -> None:
    onnx.save(scaling(np.ones(100, np.float32)), tmp_path / "m.onnx")
    assert model_bytes(tmp_path / "m.onnx") == (tmp_path / "m.onnx").stat().st_size


def test_size_counts_external_data_once(tmp_path: Path) -> None:
    onnx.save(
        scaling(np.ones(3000, np.float32)),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.bin",
        size_threshold=0,
    )
    (tmp_path / "other.bin").write_bytes(b"not part of it")
    total = (tmp_path / "m.onnx").stat().st_size + (tmp_path / "m.bin").stat().st_size
    assert model_bytes(tmp_path / "m.onnx") == total
    assert total > 12000


def test_a_lost_file_of_weights_is_named(tmp_path: Path) -> None:
    onnx.save(
        scaling(np.ones(9, np.float32)),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.bin",
        size_threshold=0,
    )
    (tmp_path / "m.bin").unlink()
    with pytest.raises(InputError, match=r"m\.bin"):
        model_bytes(tmp_path / "m.onnx")


def test_what_is_no_model_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("some text, and not a model")
    with pytest.raises(InputError, match="damaged ONNX model"):
        model_bytes(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="there is no model"):
        model_bytes(tmp_path / "none.onnx")


def measured(path: Path, feeds: dict[str, np.ndarray]) -> Memory:
    memory = measure_memory(path, feeds, threads=1)
    if memory.reason == "this system does not tell a process's peak memory":
        pytest.skip(memory.reason)
    return memory


@pytest.mark.slow
def test_memory_grows_with_what_the_model_needs_and_not_with_this_process(tmp_path: Path) -> None:
    x = {"x": np.ones(MEBI, np.float32)}
    onnx.save(scaling(np.ones((1, MEBI), np.float32)), tmp_path / "small.onnx")
    onnx.save(scaling(np.ones((24, MEBI), np.float32)), tmp_path / "large.onnx")
    ballast = np.ones(400 * MEBI, np.uint8)
    small, large = measured(tmp_path / "small.onnx", x), measured(tmp_path / "large.onnx", x)
    assert large.added_bytes is not None
    assert large.peak_bytes is not None
    assert small.peak_bytes is not None
    # 96 MiB of weights and as much of output, against 4 and 4.
    assert large.peak_bytes - small.peak_bytes > 170 * MEBI
    assert large.added_bytes > 180 * MEBI
    assert small.peak_bytes < ballast.nbytes


def test_a_model_that_does_not_run_has_a_reason_and_no_memory(tmp_path: Path) -> None:
    onnx.save(scaling(np.ones(4, np.float32)), tmp_path / "m.onnx")
    memory = measure_memory(tmp_path / "m.onnx", {"x": np.ones((2, 2, 2), np.float32)})
    assert memory.peak_bytes is None
    assert memory.reason is not None
    assert "m.onnx" in memory.reason


def test_names_that_no_file_could_have_are_fed(tmp_path: Path) -> None:
    model = scaling(np.ones(4, np.float32))
    model.graph.input[0].name = model.graph.node[0].input[0] = "a/b:c"
    onnx.save(model, tmp_path / "m.onnx")
    assert measured(tmp_path / "m.onnx", {"a/b:c": np.ones(4, np.float32)}).peak_bytes
