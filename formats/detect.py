"""Describes what a file is by its content; never unpickles anything and never trusts the suffix."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from qtool.formats import protobuf
from qtool.formats.errors import FormatError
from qtool.formats.registry import recognizable
from qtool.formats.tensorflow import tensorflow_kinds
from qtool.formats.tensorflow.keras_weights import is_keras_weights
from qtool.formats.torch.torch_zip import ZipKind, recognize
from qtool.formats.weights import safetensors_header
from qtool.formats.weights.sharded_index import is_index
from qtool.formats.zip_layout import open_zip, zip_defects

_HEAD_BYTES = 4096
# The magic number of torch.save before version 1.6, pickled as a long of ten bytes.
_LEGACY_TORCH_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
_KNOWN_KINDS = (
    "use an .onnx file, a .pth or .pt checkpoint, a .safetensors file, or a TensorFlow SavedModel, graph or Keras file"
)

# Fields of ModelProto, onnx.proto: numbers and wire types.
_IR_VERSION, _PRODUCER_NAME, _GRAPH = 1, 2, 7
_MODEL_FIELDS = {
    1: protobuf.VARINT,
    2: protobuf.BYTES,
    3: protobuf.BYTES,
    4: protobuf.BYTES,
    5: protobuf.VARINT,
    6: protobuf.BYTES,
    7: protobuf.BYTES,
    8: protobuf.BYTES,
    14: protobuf.BYTES,
    20: protobuf.BYTES,
    25: protobuf.BYTES,
    26: protobuf.BYTES,
}
_GRAPH_NODE = 1
_LONGEST_NAME_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Detection:
    """The kind of a file.

    Attributes:
        format: the key in ``qtool.formats.registry.FORMATS`` or ``SOURCES``.
        detail: the same in words, such as ``"ONNX, IR version 8"``.
    """

    format: str
    detail: str


def detect(path: Path) -> Detection:
    """Returns what ``path`` holds.

    Raises:
        FormatError: there is no such file, it is a folder, empty, truncated, or not a readable model.
    """
    if tensorflow_kinds.is_saved_model(path):
        return Detection(tensorflow_kinds.SAVED_MODEL, "TensorFlow SavedModel")
    head = read_head(path)
    size = path.stat().st_size
    if head.startswith(b"PK"):
        return _detect_zip(path)
    # Before pickles: a header of 640 bytes begins with 80 02, as they do.
    if safetensors_header.announced_header_bytes(head) is not None:
        safetensors_header.read_header(path)
        return Detection("safetensors", "safetensors")
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _detect_pickle(path, head)
    if is_index(path, head):
        return Detection("sharded", "sharded weights")
    found = _detect_onnx(path, size)
    if found is not None:
        return found
    if tensorflow_kinds.is_graph_def(path, size):
        return Detection(tensorflow_kinds.GRAPH_DEF, "frozen TensorFlow graph")
    if head.startswith(tensorflow_kinds.HDF5_HEAD) and tensorflow_kinds.is_keras_h5(path):
        return Detection(tensorflow_kinds.KERAS_H5, "Keras model in HDF5")
    if head.startswith(tensorflow_kinds.HDF5_HEAD) and is_keras_weights(path):
        return Detection(tensorflow_kinds.KERAS_WEIGHTS, "Keras weights in HDF5")
    for name, known in recognizable():
        detail = known.recognize(path, head)
        if detail is not None:
            return Detection(name, detail)
    raise _unknown(path, head)


def read_head(path: Path) -> bytes:
    """Returns the first bytes of a file, a few thousand.

    Raises:
        FormatError: there is no such file, it is a folder, or empty.
    """
    _check_is_file(path)
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not head:
        raise FormatError(f"{path} is empty", fix="save or download the model again")
    return head


def is_legacy_checkpoint(head: bytes) -> bool:
    """Returns whether a file that begins with ``head`` was written by torch.save before torch 1.6."""
    return _LEGACY_TORCH_MAGIC in head[:32]


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted(
            child.name for child in path.iterdir() if child.suffix in (".onnx", ".pth", ".pt", ".safetensors")
        )
        fix = f"name the file in it, such as {path / inside[0]}" if inside else "name a model file"
        raise FormatError(f"{path} is a folder, not a model file", fix=fix)
    if path.exists():
        return
    if path.is_symlink():
        raise FormatError(f"{path} is a broken link", fix="fetch its target again")
    if not path.parent.is_dir():
        raise FormatError(f"there is no file {path}: its folder does not exist either", fix="check the path")
    near = difflib.get_close_matches(path.name, sorted(child.name for child in path.parent.iterdir()), n=1)
    fix = f"did you mean {path.parent / near[0]}?" if near else "check the path"
    raise FormatError(f"there is no file {path}", fix=fix)


def _detect_zip(path: Path) -> Detection:
    with open_zip(path) as archive, path.open("rb") as stream:
        names = archive.namelist()
        defects = zip_defects(archive, stream, path.stat().st_size)
    if defects:
        raise FormatError(
            f"'{defects[0].member}' in the zip file {path} {defects[0].reason}",
            fix="do not use this file unless you trust it; save it again with torch.save",
        )
    found = recognize(names)
    if found.kind is ZipKind.TORCHSCRIPT:
        return Detection("torchscript", "TorchScript")
    if found.kind is ZipKind.EXPORTED:
        return Detection("exported", "torch.export file")
    if found.kind is ZipKind.CHECKPOINT:
        return Detection("torch", "torch checkpoint")
    if names and all(name.endswith(".npy") for name in names):
        raise _other(path, "an .npz file of numpy arrays, so data and not a model", _KNOWN_KINDS)
    if set(names) >= tensorflow_kinds.KERAS_MEMBERS:
        return Detection(tensorflow_kinds.KERAS, "Keras model")
    raise _other(path, "a zip file without a model in it", _KNOWN_KINDS)


def _detect_pickle(path: Path, head: bytes) -> Detection:
    if is_legacy_checkpoint(head):
        return Detection("torch", "torch checkpoint of the format before torch 1.6")
    raise _other(
        path,
        "a Python pickle that torch.save did not write (or its first bytes are missing)",
        "load it where you trust it, then torch.save a dictionary of tensors",
    )


def _detect_onnx(path: Path, size: int) -> Detection | None:
    """Returns None when the bytes are not an ONNX model."""
    ir_version: int | None = None
    graphs: list[protobuf.Field] = []
    with path.open("rb") as stream:
        try:
            for field in protobuf.fields(stream, 0, size):
                if _MODEL_FIELDS.get(field.number) != field.wire_type or not _plausible(field):
                    return None
                if field.number == _IR_VERSION:
                    ir_version = field.value
                if field.number == _GRAPH:
                    graphs.append(field)
            if ir_version is None:
                return None
            nodes = any(
                field.number == _GRAPH_NODE
                for graph in graphs
                for field in protobuf.fields(stream, graph.start, graph.end)
            )
        except protobuf.WireError as error:
            if ir_version is None or not error.cut_short:
                return None
            raise FormatError(
                f"{path} begins like an ONNX model but is truncated after {size:,} bytes",
                fix="save or download it again",
            ) from error
    if not nodes:
        raise FormatError(
            f"{path} reads like an ONNX model without a single operator, so it is damaged or of another kind",
            fix="export the model again",
        )
    return Detection("onnx", f"ONNX, IR version {ir_version}")


def _plausible(field: protobuf.Field) -> bool:
    if field.number == _IR_VERSION:
        return 1 <= field.value <= 99
    # A TensorFlow SavedModel has the same field numbers, with its graph in the field of the producer's name.
    return field.number != _PRODUCER_NAME or field.end - field.start <= _LONGEST_NAME_BYTES


def _unknown(path: Path, head: bytes) -> FormatError:
    if head.startswith(tensorflow_kinds.HDF5_HEAD):
        return _other(
            path,
            "an HDF5 file without the layers or the weights of a Keras model",
            "save the whole model: model.save('model.keras')",
        )
    if head[4:8] == b"TFL3":
        return _other(path, "a TensorFlow Lite model", "convert the SavedModel or Keras file that it was made from")
    if head.startswith(b"\x1f\x8b"):
        return _other(path, "compressed with gzip", "unpack it first: gunzip, or tar xzf")
    if head.startswith(b"\x08\x01\x12"):
        return _other(path, "the graph of a TensorFlow SavedModel", f"name its folder: {path.parent}")
    text = _as_text(head)
    if text is None:
        return _other(path, f"not a known kind of model file (it begins with {head[:8].hex(' ')})", _KNOWN_KINDS)
    if text.startswith("version https://git-lfs"):
        return _other(path, "a Git LFS pointer instead of the file itself", "fetch the file: git lfs pull")
    if text.lstrip().lower().startswith(("<!doctype html", "<html")):
        return _other(path, "an HTML page, as a failed download leaves it", "download the model again")
    line = text.strip().splitlines()[0][:40] if text.strip() else ""
    return _other(path, f"a text file that begins with '{line}'", _KNOWN_KINDS)


def _as_text(head: bytes) -> str | None:
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start == 0 or error.reason != "unexpected end of data":
            return None
        text = head[: error.start].decode("utf-8-sig")  # the head's last character is cut
    return text if all(character.isprintable() or character in "\r\n\t\f" for character in text) else None


def _other(path: Path, kind: str, fix: str) -> FormatError:
    return FormatError(f"{path} is {kind}", fix=fix)
