import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from qtool.formats.audit import audit
from qtool.formats.detect import detect
from qtool.formats.errors import FormatError

STATE = {"layer.weight": torch.arange(12.0).reshape(3, 4), "layer.bias": torch.zeros(3)}


def write_kinds(folder: Path) -> dict[str, Path]:
    torch.save(STATE, folder / "zip.pth")
    torch.save(STATE, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(STATE, folder / "weights.safetensors")
    return {"torch": folder / "zip.pth", "legacy": folder / "legacy.pth", "safetensors": folder / "weights.safetensors"}


def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for padding in range(0, 700, 8):
        safetensors.torch.save_file(STATE, path, metadata={"padding": "x" * padding})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    else:
        pytest.fail("no header of 640 bytes was made")
    assert detect(path).format == "safetensors"
    assert audit(path).kind == "safetensors"


def test_each_kind_is_told_by_its_content_whatever_its_name(tmp_path: Path, onnx_path: Path) -> None:
    kinds = write_kinds(tmp_path) | {"onnx": onnx_path}
    found = {}
    for name, path in kinds.items():
        disguised = tmp_path / f"{name}.bin"
        disguised.write_bytes(path.read_bytes())
        found[name] = detect(disguised).format
    assert found == {"torch": "torch", "legacy": "torch", "safetensors": "safetensors", "onnx": "onnx"}


def test_a_model_with_external_data_is_onnx(external_path: Path) -> None:
    assert detect(external_path).format == "onnx"


def test_a_missing_file_suggests_the_nearest_name(onnx_path: Path) -> None:
    with pytest.raises(FormatError, match="there is no file") as caught:
        detect(onnx_path.with_name("liner.onnx"))
    assert "linear.onnx" in caught.value.fix


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="its folder does not exist"):
        detect(tmp_path / "nowhere" / "m.onnx")


def test_a_folder_is_refused_with_the_file_in_it(onnx_path: Path) -> None:
    with pytest.raises(FormatError, match="is a folder") as caught:
        detect(onnx_path.parent)
    assert str(onnx_path) in caught.value.fix


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.touch()
    with pytest.raises(FormatError, match="is empty"):
        detect(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["torch", "safetensors", "onnx"])
def test_a_cut_file_is_called_cut(tmp_path: Path, onnx_path: Path, kind: str, share: float) -> None:
    path = (write_kinds(tmp_path) | {"onnx": onnx_path})[kind]
    whole = path.read_bytes()
    path.write_bytes(whole[: max(20, int(len(whole) * share))])
    with pytest.raises(FormatError, match="truncated"):
        detect(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"this is a note, not a model\n", "text file that begins with 'this is a note"),
        (b"\xef\xbb\xbfcaf\xc3\xa9", "text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "HTML page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b"\x1f\x8b\x08\x00" + bytes(64), "gzip"),
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "GGUF file without tensors"),
        (b"\x08\x01\x12\xff\xff\x01" + bytes(70000), "TensorFlow SavedModel"),
        (bytes(64), "not a known kind of model file"),
        (b"\xff\xfe\x00\x01garbage\x00\x01", "not a known kind of model file"),
        (pickle.dumps({"a": 1}), "pickle that torch.save did not write"),
    ],
)
def test_other_kinds_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=said):
        detect(path)


def test_a_protobuf_message_without_operators_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "fingerprint.pb"
    path.write_bytes(bytes([0x08, 0x07]))
    with pytest.raises(FormatError, match="without a single operator"):
        detect(path)


def test_zip_files_without_a_state_dict_are_told_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros(3))
    with pytest.raises(FormatError, match=r"\.npz file of numpy arrays"):
        detect(tmp_path / "data.npz")
    for name, members in {
        "torchscript": ["m/data.pkl", "m/constants.pkl", "m/code/x.py"],
        "exported": ["m/archive_format", "m/models/model.json"],
        "torch": ["m/data.pkl"],
    }.items():
        write_zip(tmp_path / name, members)
        assert detect(tmp_path / name).format == name
    write_zip(tmp_path / "other.zip", ["readme.txt"])
    with pytest.raises(FormatError, match="without a model"):
        detect(tmp_path / "other.zip")


def write_zip(path: Path, members: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, b"")


def test_a_zip_file_with_two_members_of_one_name_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("m/data.pkl", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("m/data.pkl", b"two")
    (tmp_path / "m.pth").write_bytes(stream.getvalue())
    with pytest.raises(FormatError, match="twice"):
        detect(tmp_path / "m.pth")
