import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import safetensors.torch
import torch

from qtool.formats.errors import FormatError
from qtool.formats.onnx.onnx_file import OnnxFile


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model with a weight of 8000 bytes in ``m.data``, in a folder of its own."""
    weights = ir.tensor([[float(value) for value in range(1000)], [0.0] * 1000], dtype=ir.DataType.FLOAT, name="w")
    x = ir.Value(name="x", shape=ir.Shape([1, 2]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="w", shape=weights.shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=weights)
    node = ir.node("MatMul", [x, w])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 17}, name="g")
    (tmp_path / "model").mkdir()
    ir.save(ir.Model(graph, ir_version=8), tmp_path / "model" / "m.onnx", external_data="m.data")
    return tmp_path / "model" / "m.onnx"


def point(path: Path, **entries: str) -> None:
    """Changes where the weight says that it is."""
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key in entries:
            entry.value = entries.pop(entry.key)
    for key, value in entries.items():
        model.graph.initializer[0].external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_a_good_model_passes_and_its_files_are_named(external: Path, audited: Any, run: Any) -> None:
    report = audited(external)
    assert (report["schema"], report["kind"]) == ("qtool.audit/1", "ONNX, IR version 8")
    assert (report["findings"], report["files"]) == ([], ["m.data"])
    shown = run("audit", external)
    assert shown.exit_code == 0
    assert "none" in shown.stdout
    assert "m.data" in shown.stdout


@pytest.mark.parametrize(
    ("entries", "risk", "what"),
    [
        ({"location": "../secret"}, "reaches outside", "outside of the model's folder"),
        ({"location": "/etc/passwd"}, "reaches outside", "outside of the model's folder"),
        ({"location": "C:\\x"}, "reaches outside", "outside of the model's folder"),
        ({"location": "sub/../../secret"}, "reaches outside", "outside of the model's folder"),
        ({"location": ""}, "does not add up", "does not say in which file"),
        ({"location": "."}, "reaches outside", "not a file"),
        ({"location": "gone"}, "does not add up", "is missing"),
        ({"offset": "-8"}, "does not add up", "ends at byte"),
        ({"offset": "4"}, "does not add up", "ends at byte"),
        ({"offset": "x"}, "does not add up", "not a number"),
        ({"length": "9000"}, "does not add up", "claims 9,000 bytes"),
        ({"offset": "9223372036854775807"}, "does not add up", "ends at byte"),
    ],
)
def test_external_data_in_the_wrong_place_is_told_and_refused(
    external: Path, audited: Any, entries: dict[str, str], risk: str, what: str
) -> None:
    (external.parent.parent / "secret").write_bytes(bytes(8000))
    point(external, **entries)
    (finding,) = audited(external)["findings"]
    assert (finding["risk"], finding["where"]) == (risk, "w")
    assert what in finding["what"]
    with pytest.raises(FormatError, match=what):
        OnnxFile().read(external)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_to_files_outside_are_told_and_refused(external: Path, audited: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(8000))
    data = external.with_name("m.data")
    for make, what in ((os.symlink, "through a link"), (os.link, "several hard links")):
        data.unlink()
        make(secret, data)
        (finding,) = audited(external)["findings"]
        assert finding["risk"] == "reaches outside"
        assert what in finding["what"]
        with pytest.raises(FormatError, match=what):
            OnnxFile().read(external)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_in_circles_and_endless_names_are_refused(external: Path, audited: Any, run: Any) -> None:
    data = external.with_name("m.data")
    data.unlink()
    data.symlink_to(data.name)
    assert "a broken link" in audited(external)["findings"][0]["what"]
    point(external, location="a" * 5000)
    assert "5,000 characters" in audited(external)["findings"][0]["what"]
    result = run("inspect", str(data))
    assert (result.exit_code, "is a broken link" in result.stderr) == (2, True)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_model_with_several_names_itself_is_no_finding(external: Path, audited: Any, run: Any) -> None:
    os.link(external, external.with_name("again.onnx"))
    assert audited(external.with_name("again.onnx"))["findings"] == []
    assert run("inspect", external.with_name("again.onnx")).exit_code == 0


def test_absurd_dimensions_take_no_memory(external: Path, audited: Any) -> None:
    model = onnx.load(external, load_external_data=False)
    model.graph.initializer[0].dims[:] = [1 << 62, 1 << 62]
    external.write_bytes(model.SerializeToString())
    (finding,) = audited(external)["findings"]
    assert "claims 8,000 bytes where its shape needs" in finding["what"]
    with pytest.raises(FormatError, match="where its shape needs"):
        OnnxFile().read(external)


TWICE = '{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"w":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}'


def header(fields: dict[str, Any] | str, data: bytes = b"") -> bytes:
    text = (fields if isinstance(fields, str) else json.dumps(fields)).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80]}}, bytes(8)), "another number of bytes"),
        (header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4)), "truncated"),
        (header({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)), "another number of bytes"),
        (header({"w": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 8]}}, bytes(8)), "another"),
        (header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, bytes(16)), "gap"),
        (header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(9)), "belong to no tensor"),
        (header({"w": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}, bytes(4)), "100 axes"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{not json here}}", "not JSON"),
        (header(TWICE, bytes(4)), "'w' twice"),
    ],
)
def test_a_header_that_lies_is_told(tmp_path: Path, audited: Any, content: bytes, what: str) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    (finding,) = audited(tmp_path / "m.safetensors")["findings"]
    assert finding["risk"] == "does not add up"
    assert what in finding["what"]


def write_shards(folder: Path) -> Path:
    safetensors.torch.save_file({"a": torch.ones(2)}, folder / "m-00001-of-00002.safetensors")
    torch.save({"b": torch.zeros(3)}, folder / "m-00002-of-00002.bin")
    index = folder / "m.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.bin"}}))
    return index


def test_every_file_of_an_index_is_looked_into(tmp_path: Path, audited: Any, payload: Any, checkpoint: Any) -> None:
    index = write_shards(tmp_path)
    report = audited(index)
    assert (report["findings"], len(report["files"])) == ([], 2)
    (tmp_path / "m-00002-of-00002.bin").write_bytes(checkpoint(payload("global", tmp_path / "ran")))
    (finding,) = audited(index)["findings"]
    assert finding["where"] == "m-00002-of-00002.bin: m/data.pkl"


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "sub/x.bin", "..", ""])
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, audited: Any, run: Any, name: str) -> None:
    index = write_shards(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    (finding,) = audited(index)["findings"]
    assert finding["risk"] == "reaches outside"
    assert run("inspect", index).exit_code == 2


def test_the_exit_code_and_the_message_say_what_is_wrong(tmp_path: Path, run: Any) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    result = run("audit", tmp_path / "whole.pth")
    assert result.exit_code == 1
    assert "torch.nn.modules.linear.Linear" in result.stdout
    error, fix = result.stderr.strip().splitlines()
    assert "is not safe to open: whole/data.pkl imports torch.nn.modules.linear.Linear" in error
    assert ".safetensors" in fix


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("note.txt", b"remember the milk", "text file"),
        ("empty.pth", b"", "is empty"),
        ("cut.pth", b"PK\x03\x04", "cut"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, run: Any, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    result = run("audit", tmp_path / name)
    assert result.exit_code == 2
    assert said in result.stderr
    assert run("audit", tmp_path / "nowhere.pth").exit_code == 2
    assert run("audit").exit_code == 2


def write_keras(path: Path, *layers: str) -> Path:
    """Writes what Keras does for a chain of layers, as far as it can be read without Keras."""
    entries = [
        {"module": "keras.layers", "class_name": name, "config": {"name": name.lower()}, "registered_name": None}
        for name in ("InputLayer", *layers)
    ]
    config = {"module": "keras", "class_name": "Sequential", "config": {"name": "net", "layers": entries}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.11.0"}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n")
    return path


def test_a_keras_layer_with_code_of_its_own_is_told(tmp_path: Path, audited: Any) -> None:
    assert audited(write_keras(tmp_path / "good.keras", "Dense"))["findings"] == []
    (finding,) = audited(write_keras(tmp_path / "bad.keras", "Dense", "Lambda"))["findings"]
    assert finding["risk"] == "runs code"
    assert "class Lambda" in finding["what"]


def test_a_tensorflow_graph_that_reads_files_is_told(tmp_path: Path, audited: Any) -> None:
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def node(name: bytes, operator: bytes) -> bytes:
        return field(1, field(1, name) + field(2, operator))

    harmless = node(b"x", b"Placeholder") + node(b"y", b"Relu")
    (tmp_path / "good.pb").write_bytes(harmless)
    assert audited(tmp_path / "good.pb")["findings"] == []
    (tmp_path / "bad.pb").write_bytes(harmless + node(b"leak", b"ReadFile"))
    (finding,) = audited(tmp_path / "bad.pb")["findings"]
    assert finding["risk"] == "reaches outside"
    assert "ReadFile" in finding["where"] + finding["what"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"dims": [1 << 31, 1 << 31]}, "holds 16 bytes where its shape needs 18,446,744,073,709,551,616"),
        ({"raw_data": b"12"}, "holds 2 bytes where its shape needs 16"),
        ({"raw_data": None, "float_data": [1.0]}, "holds 1 values where its shape needs 4"),
        ({"data_type": 99}, "the element type 99"),
    ],
)
def test_values_that_are_not_as_many_as_the_shape_says_are_told(
    tmp_path: Path, audited: Any, run: Any, change: dict[str, Any], what: str
) -> None:
    fields = {"name": "w", "data_type": 1, "dims": [2, 2], "raw_data": bytes(16)} | change
    weights = onnx.TensorProto(**{key: value for key, value in fields.items() if value is not None})
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, 2]) for name in "xy"]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.helper.make_model(graph, ir_version=8).SerializeToString())
    (finding,) = audited(path)["findings"]
    assert what in finding["what"]
    result = run("inspect", str(path))
    assert result.exit_code == 2
    assert what in result.stderr


def test_what_leads_to_itself_ends_with_a_message(tmp_path: Path, run: Any) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": index.name}}))
    node = onnx.helper.make_node("F", ["a"], ["b"], domain="d")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "ab"]
    opsets = [onnx.helper.make_opsetid("d", 1), onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:]), opset_imports=opsets)
    model.functions.append(onnx.helper.make_function("d", "F", ["a"], ["b"], [node], opsets))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name, text in {"config.json": "[" * 100_000, "metadata.json": "{}", "model.weights.h5": ""}.items():
            archive.writestr(name, text)
    said = {"m.onnx": "in a circle", index.name: "another index", "m.keras": "no readable Keras configuration"}
    for name, message in said.items():
        result = run("inspect", tmp_path / name)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert run("audit", tmp_path / name).exit_code in (0, 1, 2)
