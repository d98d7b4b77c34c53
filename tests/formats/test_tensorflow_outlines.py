import importlib.util
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qtool.cli.app import app
from qtool.formats.detect import detect
from qtool.formats.errors import FormatError

IMAGE = [-1, 8, 8, 3]


# TensorFlow writes these messages itself; by hand they need no TensorFlow.


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value % (1 << 64))


def content(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(data)) + data


def shape(dims: Sequence[int]) -> bytes:
    return b"".join(content(2, number(1, dim)) for dim in dims)


def node(name: str, kind: str, inputs: Sequence[str] = (), **attributes: bytes) -> bytes:
    parts = [content(1, name), content(2, kind), *(content(3, one) for one in inputs)]
    parts += [content(5, content(1, key) + content(2, value)) for key, value in attributes.items()]
    return b"".join(parts)


def placeholder(name: str, dims: Sequence[int]) -> bytes:
    return node(name, "Placeholder", dtype=number(6, 1), shape=content(7, shape(dims)))


def constant(name: str, dims: Sequence[int]) -> bytes:
    tensor = number(1, 1) + content(2, shape(dims))
    return node(name, "Const", dtype=number(6, 1), value=content(8, tensor))


def graph(*nodes: bytes) -> bytes:
    return b"".join(content(1, one) for one in nodes)


def saved_model(graph_def: bytes, inputs: dict[str, str], outputs: dict[str, str], dims: Sequence[int]) -> bytes:
    def end(field: int, name: str, tensor: str) -> bytes:
        info = content(1, f"{tensor}:0") + number(2, 1) + content(3, shape(dims))
        return content(field, content(1, name) + content(2, info))

    ends = [end(1, *one) for one in inputs.items()] + [end(2, *one) for one in outputs.items()]
    signature = content(1, "serving_default") + content(2, b"".join(ends))
    meta = content(1, content(4, "serve") + content(5, "2.21.0")) + content(2, graph_def) + content(5, signature)
    return number(1, 1) + content(2, meta)


def layers() -> list[bytes]:
    return [
        placeholder("image", IMAGE),
        constant("kernel", [3, 3, 3, 4]),
        node("conv", "Conv2D", ["image", "kernel"], data_format=content(2, "NHWC")),
        node("relu", "Relu", ["conv:0"]),
        node("check", "NoOp", ["^relu"]),
    ]


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    path = tmp_path / "frozen.pb"
    path.write_bytes(graph(*layers()))
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    folder.mkdir()
    program = graph(*layers(), constant("unused", [1000]))
    (folder / "saved_model.pb").write_bytes(saved_model(program, {"x": "image"}, {"y": "relu"}, IMAGE))
    return folder


@pytest.fixture
def keras(tmp_path: Path) -> Path:
    path = tmp_path / "model.keras"
    config = {
        "class_name": "Functional",
        "config": {
            "layers": [
                {
                    "class_name": "InputLayer",
                    "config": {"name": "x", "batch_shape": [None, 8, 8, 3], "dtype": "float32"},
                },
                {"class_name": "Conv2D", "config": {"name": "conv", "data_format": "channels_last"}},
            ],
            "output_layers": [["conv", 0, 0]],
        },
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n")
    return path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def inspected(path: Path) -> dict[str, Any]:
    result = invoke("inspect", str(path), "--json")
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def test_each_kind_is_told_by_its_content(frozen: Path, saved: Path, keras: Path, tmp_path: Path) -> None:
    h5 = tmp_path / "model.h5"
    h5.write_bytes(b"\x89HDF\r\n\x1a\n" + b"model_config" + keras_config(keras))
    kinds = {path.name: detect(path).format for path in (frozen, saved, keras, h5)}
    assert kinds == {"frozen.pb": "graph_def", "saved": "saved_model", "model.keras": "keras", "model.h5": "keras_h5"}


def keras_config(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read("config.json")


def test_a_frozen_graph_shows_its_ends_and_weights(frozen: Path) -> None:
    facts = inspected(frozen)
    assert facts["program"]["inputs"] == ["image float32 (?, 8, 8, 3)"]
    assert facts["program"]["outputs"] == ["relu"]
    assert facts["program"]["layouts"] == {"image": "nhwc"}
    assert facts["parameters"] == 3 * 3 * 3 * 4
    assert facts["program"]["operators"]["Conv2D"] == 1


def test_a_saved_model_shows_what_its_signature_needs(saved: Path) -> None:
    facts = inspected(saved)
    assert facts["program"]["inputs"] == ["x float32 (?, 8, 8, 3)"]
    assert facts["program"]["producer"] == "TensorFlow 2.21.0"
    assert facts["parameters"] == 3 * 3 * 3 * 4


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_keras_file_shows_its_layers(keras: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    if suffix == "h5":
        path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100) + b"model_config" + keras_config(keras) + bytes(100))
    facts = inspected(path)
    assert facts["program"]["inputs"] == ["x float32 (?, 8, 8, 3)"]
    assert facts["program"]["outputs"] == ["conv"]
    assert facts["program"]["layouts"] == {"x": "nhwc"}
    assert facts["program"]["operators"] == {"Conv2D": 1, "InputLayer": 1}


def test_the_table_says_the_layout(frozen: Path) -> None:
    assert "image float32 (?, 8, 8, 3), NHWC" in invoke("inspect", str(frozen)).output


@pytest.mark.parametrize("missing", ["tensorflow", "tf2onnx"])
def test_without_the_extra_convert_says_what_to_install(
    saved: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    result = invoke("convert", str(saved), "-o", str(saved.parent / "m.onnx"))
    assert result.exit_code == 2
    assert f"{missing}" in result.output
    assert "pip install 'qtool-onnx[tensorflow]'" in result.output


def test_a_graph_that_reads_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reader.pb"
    path.write_bytes(graph(placeholder("x", [1]), node("steal", "ReadFile", ["x"])))
    assert "ReadFile reaches outside" in invoke("inspect", str(path)).output
    result = invoke("convert", str(path), "-o", str(tmp_path / "m.onnx"))
    assert result.exit_code == 2
    assert "ReadFile" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--outputs", "rela"), "the nearest is relu"),
        (("--to", "pth"), "has no torch module"),
        (("--model", "net.py:Net"), "which holds its layers"),
    ],
)
def test_options_that_do_not_fit_are_refused(frozen: Path, arguments: tuple[str, ...], said: str) -> None:
    result = invoke("convert", str(frozen), *arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_inputs_of_a_saved_model_cannot_be_chosen(saved: Path) -> None:
    result = invoke("convert", str(saved), "--inputs", "image", "-o", str(saved.parent / "m.onnx"))
    assert result.exit_code == 2
    assert "for frozen graphs only" in result.output


def test_signatures_are_chosen_among_those_that_there_are(saved: Path, frozen: Path) -> None:
    result = invoke("convert", str(saved), "--signature", "train", "-o", str(saved.parent / "m.onnx"))
    assert result.exit_code == 2
    assert "has no signature 'train'" in result.output
    assert "choose one of serving_default" in result.output
    assert "for SavedModels only" in invoke("convert", str(frozen), "--signature", "train").output


def test_tensorflow_options_say_nothing_about_other_files(onnx_path: Path) -> None:
    result = invoke("convert", str(onnx_path), "--opset", "18", "--nchw")
    assert result.exit_code == 2
    assert "--nchw" in result.output


@pytest.mark.parametrize("length", [1, 2, 5, 40, 80, 150])
def test_a_graph_that_is_cut_short_is_no_crash(frozen: Path, length: int) -> None:
    frozen.write_bytes(frozen.read_bytes()[:length])
    result = invoke("inspect", str(frozen))
    assert result.exit_code in (0, 2), result.output


def test_damaged_saved_models_say_so(saved: Path) -> None:
    path = saved / "saved_model.pb"
    path.write_bytes(path.read_bytes()[:-20])
    result = invoke("inspect", str(saved))
    assert result.exit_code == 2
    assert "damaged TensorFlow model" in result.output


def test_a_tensorflow_lite_file_names_the_nearest_way(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(100))
    with pytest.raises(FormatError, match="TensorFlow Lite") as caught:
        detect(path)
    assert "SavedModel" in caught.value.fix


def test_a_saved_model_without_a_signature_is_refused(saved: Path) -> None:
    (saved / "saved_model.pb").write_bytes(number(1, 1) + content(2, content(2, graph(*layers()))))
    result = invoke("convert", str(saved), "-o", str(saved.parent / "m.onnx"))
    assert result.exit_code == 2
    assert "has no signature" in result.output
