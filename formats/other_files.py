"""Names files that are of no format, and says what to do about them."""

from __future__ import annotations

from pathlib import Path

from qtool.formats.candidate import Candidate
from qtool.formats.containers.pickle_scan import PICKLE_HEADS
from qtool.formats.errors import FormatError
from qtool.formats.tensorflow.hdf5_outline import HDF5_HEAD

_MODEL_SUFFIXES = (".onnx", ".pth", ".pt", ".safetensors")
_FORMATS = (
    "use an .onnx file, a .pth or .pt checkpoint, a .safetensors file, or a TensorFlow SavedModel, graph or Keras file"
)


def not_a_model(file: Candidate) -> FormatError:
    """Returns the error for a file that no format recognizes.

    Raises:
        FormatError: it is a damaged zip file.
    """
    kind, fix = _folder(file.path) if file.path.is_dir() else _kind(file)
    return FormatError(f"{file.path} is {kind}", fix=fix)


def _folder(path: Path) -> tuple[str, str]:
    inside = sorted(child.name for child in path.iterdir() if child.suffix in _MODEL_SUFFIXES)
    fix = f"name the file in it, such as {path / inside[0]}" if inside else "name a model file"
    return "a folder, not a model file", fix


def _kind(file: Candidate) -> tuple[str, str]:
    """Returns what a file is, and what to do about it."""
    head = file.head
    if file.is_zip:
        arrays = file.members and all(name.endswith(".npy") for name in file.members)
        kind = "an .npz file of numpy arrays, so data and not a model" if arrays else "a zip file without a model in it"
        return kind, _FORMATS
    if head.startswith(PICKLE_HEADS):
        return (
            "a Python pickle that torch.save did not write (or its first bytes are missing)",
            "load it where you trust it, then torch.save a dictionary of tensors",
        )
    if head.startswith(HDF5_HEAD):
        return (
            "an HDF5 file without the layers or the weights of a Keras model",
            "save the whole model: model.save('model.keras')",
        )
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model", "convert the SavedModel or Keras file that it was made from"
    if head.startswith(b"\x1f\x8b"):
        return "compressed with gzip", "unpack it first: gunzip, or tar xzf"
    if head.startswith(b"\x08\x01\x12"):
        return "the graph of a TensorFlow SavedModel", f"name its folder: {file.path.parent}"
    return _text_kind(head)


def _text_kind(head: bytes) -> tuple[str, str]:
    text = _as_text(head)
    if text is None:
        return f"not a known kind of model file (it begins with {head[:8].hex(' ')})", _FORMATS
    if text.startswith("version https://git-lfs"):
        return "a Git LFS pointer instead of the file itself", "fetch the file: git lfs pull"
    if text.lstrip().lower().startswith(("<!doctype html", "<html")):
        return "an HTML page, as a failed download leaves it", "download the model again"
    line = text.strip().splitlines()[0][:40] if text.strip() else ""
    return f"a text file that begins with '{line}'", _FORMATS


def _as_text(head: bytes) -> str | None:
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start == 0 or error.reason != "unexpected end of data":
            return None
        text = head[: error.start].decode("utf-8-sig")  # the head's last character is cut
    return text if all(character.isprintable() or character in "\r\n\t\f" for character in text) else None
