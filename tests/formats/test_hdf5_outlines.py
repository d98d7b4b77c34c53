"""Weights of Keras files, listed without HDF5's library; damage ends in an error of one kind."""

import io
import json
import random
import struct
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qtool.cli.app import app
from qtool.formats.tensorflow.hdf5_outline import Hdf5Array, Hdf5Error, Hdf5OutsideError, read_arrays
from tests.hdf5_files import hdf5


@pytest.fixture
def keras(tmp_path: Path) -> Path:
    layers = [{"class_name": "InputLayer", "config": {"name": "x", "dtype": "float32", "batch_shape": [None, 3]}}]
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.9.0"}))
        archive.writestr("config.json", json.dumps({"class_name": "Functional", "config": {"layers": layers}}))
        archive.writestr("model.weights.h5", hdf5())
    return tmp_path / "m.keras"


def test_arrays_are_listed_with_their_types_and_shapes() -> None:
    expected = [Hdf5Array(path=("kernel",), dtype="float32", shape=(3, 5), item_bytes=4)]
    assert read_arrays(io.BytesIO(hdf5())) == expected
    assert read_arrays(io.BytesIO(b"before" + hdf5()), 6) == expected


def test_inspect_counts_the_parameters_of_a_keras_file(keras: Path) -> None:
    facts = json.loads(CliRunner().invoke(app, ["inspect", str(keras), "--json"]).stdout)
    assert (facts["parameters"], facts["largest"][0]["name"]) == (15, "kernel")
    assert facts["program"]["warnings"] == []


def test_weights_of_another_kind_are_told_and_the_rest_is_described(keras: Path) -> None:
    with zipfile.ZipFile(keras) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["model.weights.h5"] = b"\x89HDF\r\n\x1a\n\x02" + bytes(200)
    with zipfile.ZipFile(keras, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    result = CliRunner().invoke(app, ["inspect", str(keras), "--json"])
    assert result.exit_code == 0, result.output
    assert "not counted" in json.loads(result.stdout)["program"]["warnings"][0]


def test_damaged_files_raise_one_error() -> None:
    whole = hdf5()
    for length in range(len(whole)):
        with pytest.raises(Hdf5Error):
            read_arrays(io.BytesIO(whole[:length]))
    source, refused = random.Random(0), 0
    for place in range(len(whole)):
        for _ in range(4):
            changed = bytearray(whole)
            changed[place] = source.randrange(256)
            try:
                read_arrays(io.BytesIO(bytes(changed)))
            except Hdf5Error:
                refused += 1
    assert refused > 100


def test_a_group_that_contains_itself_ends_somewhere() -> None:
    circle = hdf5().replace(struct.pack("<QQ", 8, 280), struct.pack("<QQ", 8, 96))
    with pytest.raises(Hdf5Error):
        read_arrays(io.BytesIO(circle))


def linked(*, external: bool, kind: int = 0) -> bytes:
    """Writes a root group that names its one array, ``w``, in a message, as groups that keep an order do."""
    superblock = b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0]) + bytes(8) + struct.pack("<4Q", 0, 0, 0, 0)
    superblock += struct.pack("<QQ", 0, 96) + bytes(24)
    link = bytes([1, 8, kind, 1]) + b"w" + struct.pack("<Q", 96 + 16 + 24)
    group = struct.pack("<BBHII4x", 1, 0, 1, 1, 24) + struct.pack("<HH4x", 0x06, 16) + link + bytes(16 - len(link))
    array = struct.pack("<HH4x", 1, 24) + bytes([1, 2, 0, 0, 0, 0, 0, 0]) + struct.pack("<QQ", 3, 5)
    array += struct.pack("<HH4x", 3, 8) + bytes([0x11, 0x20, 0x3F, 0]) + struct.pack("<I", 4)
    if external:
        array += struct.pack("<HH4x", 0x07, 16) + bytes(16)
    return superblock + group + struct.pack("<BBHII4x", 1, 0, 3 if external else 2, 1, len(array)) + array


def test_arrays_behind_links_are_followed() -> None:
    expected = [Hdf5Array(path=("w",), dtype="float32", shape=(3, 5), item_bytes=4)]
    assert read_arrays(io.BytesIO(linked(external=False))) == expected
    with pytest.raises(Hdf5OutsideError, match="another file"):
        read_arrays(io.BytesIO(linked(external=True)))
    with pytest.raises(Hdf5Error):
        read_arrays(io.BytesIO(linked(external=False, kind=1)))


def weights_alone(folder: Path, content: bytes) -> Path:
    """Marks a file as Keras 2 marked weights alone; what comes behind the last object is read by nobody."""
    path = folder / "w.h5"
    path.write_bytes(content + b"layer_names weight_names")
    return path


def test_weights_alone_ask_for_the_code_that_builds_their_model(tmp_path: Path) -> None:
    path = weights_alone(tmp_path, hdf5())
    for command in (["convert", str(path)], ["quantize", str(path), "--calib-data", str(tmp_path)]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2, result.output
    result = CliRunner().invoke(app, ["convert", str(path)])
    said = " ".join(result.output.split())
    assert "holds weights without the Keras model that they belong to" in said
    assert "--model file.py:factory" in said
    result = CliRunner().invoke(app, ["convert", str(path), "--model", "timm:resnet18"])
    assert "is a torch module" in " ".join(result.output.split())


def test_weights_alone_are_described(tmp_path: Path) -> None:
    facts = json.loads(CliRunner().invoke(app, ["inspect", str(weights_alone(tmp_path, hdf5())), "--json"]).stdout)
    assert (facts["kind"], facts["parameters"]) == ("Keras weights in HDF5", 15)


@pytest.mark.parametrize(
    ("content", "said"),
    [(linked(external=True), "takes values from another file"), (hdf5()[:200] + bytes(60), "cannot be looked through")],
)
def test_weights_alone_that_cannot_be_vouched_for_are_not_loaded(tmp_path: Path, content: bytes, said: str) -> None:
    path = weights_alone(tmp_path, content)
    result = CliRunner().invoke(app, ["convert", str(path), "--model", f"{tmp_path / 'mine.py'}:build"])
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())
    assert CliRunner().invoke(app, ["audit", str(path)]).exit_code == 1
