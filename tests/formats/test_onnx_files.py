import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qtool.formats.detect import detect
from qtool.formats.errors import FormatError
from qtool.formats.onnx.onnx_file import OnnxFile


def weight(model: ir.Model) -> np.ndarray:
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    return tensor.numpy()


def point(path: Path, **entries: str) -> Path:
    """Changes where the weight says that it is."""
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key in entries:
            entry.value = entries[entry.key]
    path.write_bytes(model.SerializeToString())
    return path


def test_what_is_written_reads_back_the_same(tmp_path: Path, linear_graph: ir.Model) -> None:
    OnnxFile().write(linear_graph, tmp_path / "m.onnx")
    OnnxFile().check(tmp_path / "m.onnx")
    assert np.array_equal(weight(OnnxFile().read(tmp_path / "m.onnx")), weight(linear_graph))


def test_large_weights_go_to_a_second_file(tmp_path: Path, linear_graph: ir.Model) -> None:
    OnnxFile(largest_message_bytes=1000).write(linear_graph, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 1000
    assert (tmp_path / "m.onnx.data").stat().st_size >= 8192
    OnnxFile().check(tmp_path / "m.onnx")
    assert np.array_equal(weight(OnnxFile().read(tmp_path / "m.onnx")), weight(linear_graph))


def test_external_weights_are_copied_into_a_small_model(tmp_path: Path, external_path: Path) -> None:
    model = OnnxFile().read(external_path)
    OnnxFile().write(model, tmp_path / "m.onnx")
    shutil.rmtree(external_path.parent)
    assert weight(OnnxFile().read(tmp_path / "m.onnx")).shape == (4, 512)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "C:\\x", "a\0b"])
def test_data_outside_of_the_folder_is_refused(external_path: Path, location: str) -> None:
    (external_path.parent.parent / "secret").write_bytes(bytes(8192))
    with pytest.raises(FormatError, match="points outside"):
        OnnxFile().read(point(external_path, location=location))


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_that_leads_outside_is_refused(tmp_path: Path, external_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(8192))
    data = external_path.with_name("linear.onnx.data")
    data.unlink()
    data.symlink_to(secret)
    with pytest.raises(FormatError, match="through a link"):
        OnnxFile().read(external_path)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_cache_that_links_model_and_data_to_one_folder_is_read(tmp_path: Path, external_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    for name in ("linear.onnx", "linear.onnx.data"):
        (snapshot / name).symlink_to(external_path.with_name(name))
    assert weight(OnnxFile().read(snapshot / "linear.onnx")).shape == (4, 512)


def test_a_missing_data_file_is_named(external_path: Path) -> None:
    external_path.with_name("linear.onnx.data").unlink()
    with pytest.raises(FormatError, match=r"linear\.onnx\.data .*is missing"):
        OnnxFile().read(external_path)


def test_a_cut_data_file_is_named(external_path: Path) -> None:
    data = external_path.with_name("linear.onnx.data")
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(FormatError, match="has 8,191 bytes, but tensor 'w'"):
        OnnxFile().read(external_path)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"offset": "-8"}, "has 8,192 bytes"),
        ({"offset": "8"}, "ends at byte 8,200"),
        ({"offset": "x"}, "not a number"),
        ({"length": "4"}, "claims 4 bytes where its shape needs 8,192"),
        ({"location": ""}, "does not say in which file"),
    ],
)
def test_places_that_do_not_fit_are_refused(external_path: Path, entries: dict[str, str], said: str) -> None:
    with pytest.raises(FormatError, match=said):
        OnnxFile().read(point(external_path, **entries))


def test_a_folder_in_the_place_of_data_is_refused(external_path: Path) -> None:
    data = external_path.with_name("linear.onnx.data")
    data.unlink()
    data.mkdir()
    with pytest.raises(FormatError, match="not a file"):
        OnnxFile().read(external_path)


def test_data_of_a_constant_in_a_branch_is_checked_too(tmp_path: Path) -> None:
    tensor = onnx.numpy_helper.from_array(np.zeros(2, np.float32), "hidden")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    branch = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["y"], value=tensor)], "b", [], [out])
    choice = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    node = onnx.helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    result = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [2])
    path = tmp_path / "m.onnx"
    path.write_bytes(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", [choice], [result])).SerializeToString()
    )
    with pytest.raises(FormatError, match="'hidden' points outside"):
        OnnxFile().read(path)


def test_damage_inside_of_a_whole_message_is_an_error(onnx_path: Path) -> None:
    whole = onnx_path.read_bytes()
    onnx_path.write_bytes(whole.replace(b"\x06MatMul", b"\x7fMatMul"))
    assert onnx_path.read_bytes() != whole
    assert detect(onnx_path).format == "onnx"
    with pytest.raises(FormatError, match="damaged ONNX model"):
        OnnxFile().read(onnx_path)


def test_the_checker_names_what_breaks_the_standard(tmp_path: Path, linear_graph: ir.Model) -> None:
    linear_graph.graph[0].op_type = "NoSuchOperator"
    OnnxFile().write(linear_graph, tmp_path / "m.onnx")
    with pytest.raises(FormatError, match="NoSuchOperator"):
        OnnxFile().check(tmp_path / "m.onnx")
