"""Large weights stay in the file of the model, or beside it, and go from there to another file one at a time."""

import shutil
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qtool.formats.mapped_file import MappedFile
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.formats.onnx.stored_tensor import StoredTensor

ROWS, COLUMNS = 1024, 1024
_MB = 1 << 20


def write_model(path: Path, array: np.ndarray, count: int = 1) -> onnx.ModelProto:
    """Writes a model with ``count`` weights, and what onnx itself makes of it."""
    weights = [onnx.numpy_helper.from_array(array, f"w{place}") for place in range(count)]
    weights[0].doc_string = "the first"
    nodes = [onnx.helper.make_node("Identity", [weight.name], [f"y_{weight.name}"]) for weight in weights]
    outputs = [
        onnx.helper.make_tensor_value_info(f"y_{weight.name}", weight.data_type, list(array.shape))
        for weight in weights
    ]
    graph = onnx.helper.make_graph(nodes, "g", [], outputs, weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return model


def numbers(dtype: type) -> np.ndarray:
    return np.random.default_rng(0).integers(-7, 8, (ROWS, 4 * COLUMNS)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, ml_dtypes.bfloat16, ml_dtypes.int4])
@pytest.mark.parametrize("external", [False, True])
def test_a_large_weight_stays_in_its_file_until_it_is_used(tmp_path: Path, dtype: type, *, external: bool) -> None:
    path, array = tmp_path / "m.onnx", numbers(dtype)
    model = write_model(path, array)
    if external:
        onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    tensor = OnnxFile().read(path).graph.initializers["w0"].const_value
    assert isinstance(tensor, StoredTensor)
    assert tensor.file.path.name == ("m.data" if external else "m.onnx")
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tensor.tobytes() == onnx.numpy_helper.from_array(array).raw_data


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, ml_dtypes.int4])
def test_what_is_written_with_its_weights_inside_is_what_onnx_reads(tmp_path: Path, dtype: type) -> None:
    expected = write_model(tmp_path / "m.onnx", numbers(dtype), count=2)
    OnnxFile().write(OnnxFile().read(tmp_path / "m.onnx"), tmp_path / "again.onnx")
    (tmp_path / "m.onnx").unlink()
    found = onnx.load(tmp_path / "again.onnx")
    onnx.checker.check_model(found)
    assert {one.name: one for one in found.graph.initializer} == {one.name: one for one in expected.graph.initializer}
    assert list(found.graph.node) == list(expected.graph.node)


def test_a_model_behind_a_link_is_read(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    write_model(tmp_path / "blobs" / "1234", numbers(np.float32))
    (tmp_path / "m.onnx").symlink_to("blobs/1234")
    tensor = OnnxFile().read(tmp_path / "m.onnx").graph.initializers["w0"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), numbers(np.float32))


def test_a_weight_is_computed_with_after_its_model_is_gone(tmp_path: Path) -> None:
    write_model(tmp_path / "m.onnx", numbers(np.float32))
    tensor = OnnxFile().read(tmp_path / "m.onnx").graph.initializers["w0"].const_value
    assert tensor is not None
    array = tensor.numpy()[:2]
    del tensor
    shutil.rmtree(tmp_path)
    np.testing.assert_array_equal(array, numbers(np.float32)[:2])


def test_copying_a_model_holds_none_of_its_weights(tmp_path: Path) -> None:
    write_model(tmp_path / "m.onnx", numbers(np.float32), count=4)
    OnnxFile().read(tmp_path / "m.onnx")  # what is imported and cached by then does not count
    tracemalloc.start()
    try:
        OnnxFile().write(OnnxFile().read(tmp_path / "m.onnx"), tmp_path / "again.onnx")
        assert tracemalloc.get_traced_memory()[1] < 4 * _MB
    finally:
        tracemalloc.stop()
    assert (tmp_path / "again.onnx").stat().st_size > 64 * _MB


def test_parts_of_one_file_share_a_mapping_and_outlive_it(tmp_path: Path) -> None:
    numbers(np.int8).tofile(tmp_path / "numbers")
    mapped = MappedFile.at(tmp_path / "numbers")
    first, second = (mapped.array(place, np.dtype(np.int8), 10_000) for place in (5, 8_000))
    expected = numbers(np.int8).reshape(-1)
    view = second[3:]
    del second, mapped
    np.testing.assert_array_equal(view, expected[8_003:18_000])
    del view
    np.testing.assert_array_equal(first, expected[5:10_005])
    assert not first.flags.writeable


def test_a_hard_link_to_the_model_itself_does_no_harm(tmp_path: Path) -> None:
    write_model(tmp_path / "m.onnx", numbers(np.float32))
    (tmp_path / "other.onnx").hardlink_to(tmp_path / "m.onnx")
    OnnxFile().write(OnnxFile().read(tmp_path / "m.onnx"), tmp_path / "again.onnx")
    assert isinstance(ir.load(tmp_path / "again.onnx").graph.initializers["w0"].const_value, ir.TensorProtoTensor)
