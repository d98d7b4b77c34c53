"""Every registered format keeps to the protocol."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import safetensors.torch
import torch

from qtool.formats import registry
from qtool.formats.audit import audit
from qtool.formats.base import SeveralFiles, Weights
from qtool.formats.candidate import Candidate
from qtool.formats.companions import companion_files
from qtool.formats.detect import detect, recognize
from qtool.formats.errors import FormatError
from qtool.formats.findings import AuditNotes
from tests.hdf5_files import hdf5, write_h5

STATE = {"layer.weight": torch.arange(12.0).reshape(3, 4), "layer.bias": torch.zeros(3)}
NET = '<ir_version: 8, opset_import: ["" : 17]> net (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }'
HEAVY = ("torch", "onnx", "onnx_ir", "safetensors", "tensorflow", "h5py")


class Layer(torch.nn.Module):
    """Adds a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


GRAPH = b"".join(
    field(1, field(1, name) + field(2, operator)) for name, operator in ((b"x", b"Placeholder"), (b"y", b"Relu"))
)


def torch_file(folder: Path) -> Path:
    torch.save(STATE, folder / "model.pth")
    return folder / "model.pth"


def safetensors_file(folder: Path) -> Path:
    safetensors.torch.save_file(STATE, folder / "model.safetensors")
    return folder / "model.safetensors"


def onnx_file(folder: Path) -> Path:
    onnx.save(onnx.parser.parse_model(NET), folder / "net.onnx")
    return folder / "net.onnx"


def torchscript_file(folder: Path) -> Path:
    torch.jit.save(torch.jit.trace(Layer().eval(), torch.ones(2, 3)), folder / "layer.pt")
    return folder / "layer.pt"


def exported_file(folder: Path) -> Path:
    torch.export.save(torch.export.export(Layer().eval(), (torch.ones(2, 3),)), folder / "layer.pt2")
    return folder / "layer.pt2"


def sharded_files(folder: Path) -> Path:
    safetensors_file(folder)
    index = {"weight_map": dict.fromkeys(STATE, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def gguf_file(folder: Path) -> Path:
    # Its header with one field and one tensor, whose bytes begin at a multiple of 32.
    text = struct.Struct("<Q").pack
    field_bytes = text(20) + b"general.architecture" + struct.pack("<I", 8) + text(5) + b"llama"
    tensor = text(1) + b"w" + struct.pack("<IQQIQ", 2, 4, 3, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + field_bytes + tensor
    values = STATE["layer.weight"].numpy().tobytes()
    (folder / "model.gguf").write_bytes(head + bytes(-len(head) % 32) + values)
    return folder / "model.gguf"


CONFIG = {
    "module": "keras",
    "class_name": "Sequential",
    "config": {"name": "net", "layers": [{"module": "keras.layers", "class_name": "Dense", "config": {"name": "d"}}]},
}


def keras_file(folder: Path) -> Path:
    weights = keras_weights_file(folder).read_bytes()
    with zipfile.ZipFile(folder / "net.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.11.0"}))
        archive.writestr("config.json", json.dumps(CONFIG))
        archive.writestr("model.weights.h5", weights)
    return folder / "net.keras"


def keras_h5_file(folder: Path) -> Path:
    return write_h5(folder / "net.h5", {"model_config": json.dumps(CONFIG)})


def keras_weights_file(folder: Path) -> Path:
    # What comes behind the last object is read by nobody; the two names mark weights of Keras 2.
    (folder / "net.weights.h5").write_bytes(hdf5() + b"layer_names weight_names")
    return folder / "net.weights.h5"


def saved_model(folder: Path) -> Path:
    (folder / "saved").mkdir()
    meta_graph = field(2, GRAPH)
    (folder / "saved" / "saved_model.pb").write_bytes(b"\x08\x01" + field(2, meta_graph))
    return folder / "saved"


def graph_def(folder: Path) -> Path:
    (folder / "graph.pb").write_bytes(GRAPH)
    return folder / "graph.pb"


MAKERS: dict[str, Callable[[Path], Path]] = {
    "torch": torch_file,
    "safetensors": safetensors_file,
    "onnx": onnx_file,
    "torchscript": torchscript_file,
    "exported": exported_file,
    "gguf": gguf_file,
    "sharded": sharded_files,
    "keras": keras_file,
    "keras_h5": keras_h5_file,
    "keras_weights": keras_weights_file,
    "saved_model": saved_model,
    "graph_def": graph_def,
}

every_format = pytest.mark.parametrize("name", registry.names())


def test_every_format_has_a_file_here() -> None:
    assert set(MAKERS) == set(registry.names())


@every_format
def test_its_files_are_its_own_and_no_other_formats(tmp_path: Path, name: str) -> None:
    file = Candidate.at(MAKERS[name](tmp_path))
    recognized = {other: registry.load_source(other).recognize(file) for other in registry.names()}
    found = recognized.pop(name)
    assert found is not None
    assert found.damage is None
    assert not any(recognized.values())
    detection = detect(file.path)
    assert (detection.format, detection.detail) == (name, found.kind)


@every_format
def test_a_harmless_file_passes_its_audit_under_the_same_name(tmp_path: Path, name: str) -> None:
    path = MAKERS[name](tmp_path)
    report = audit(path)
    assert (report.kind, report.findings) == (detect(path).detail, ())


@every_format
def test_the_name_of_the_file_does_not_matter(tmp_path: Path, name: str) -> None:
    path = MAKERS[name](tmp_path)
    assert detect(path.rename(path.with_name("thing.bin"))).format == name


@every_format
@pytest.mark.parametrize("other", ["text", "zeros", "noise", "zip", "folder", "pickle"])
def test_it_leaves_other_files_alone(tmp_path: Path, name: str, other: str) -> None:
    path = tmp_path / "other"
    match other:
        case "folder":
            path.mkdir()
        case "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("readme.txt", b"no model")
        case _:
            noise = random.Random(0).randbytes(5000)
            contents = {"text": b"a note\n", "zeros": bytes(5000), "noise": noise, "pickle": b"\x80\x02}."}
            path.write_bytes(contents[other])
    assert registry.load_source(name).recognize(Candidate.at(path)) is None


@every_format
@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_truncated_file_ends_with_an_error_of_one_kind(tmp_path: Path, name: str, share: float) -> None:
    path = truncated(MAKERS[name](tmp_path), share)
    candidate = Candidate.at(path)
    for look in (lambda: recognize(candidate), lambda: audit(path), lambda: detect(path)):
        with suppress(FormatError):  # and no other error
            look()


@every_format
def test_the_first_bytes_alone_are_refused(tmp_path: Path, name: str) -> None:
    path = truncated(MAKERS[name](tmp_path), 0.02)
    with pytest.raises(FormatError):
        (audit if path.is_dir() else detect)(path)


def truncated(path: Path, share: float) -> Path:
    file = path / "saved_model.pb" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[: max(1, int(share * file.stat().st_size))])
    return path


@every_format
def test_its_companions_are_beside_it(tmp_path: Path, name: str) -> None:
    path = MAKERS[name](tmp_path)
    names = companion_files(path)
    assert names == (("model.safetensors",) if name == "sharded" else ())
    assert isinstance(registry.load_source(name), SeveralFiles) == (name in ("sharded", "onnx"))


@pytest.mark.parametrize("name", registry.FORMATS)
def test_what_it_writes_it_reads_again(tmp_path: Path, name: str) -> None:
    known = registry.load(name)
    path, again = tmp_path / f"one{known.suffix}", tmp_path / f"two{known.suffix}"
    if known.holds == "graph":
        known.write(ir.from_onnx_text(NET), path)
        known.write(known.read(path), again)
        assert onnx.load(path).graph.node[0].op_type == "Relu"
    else:
        known.write(Weights(tensors=STATE, metadata={}, source=""), path)
        found = known.read(path)
        assert found.tensors.keys() == STATE.keys()
        for key, tensor in STATE.items():
            torch.testing.assert_close(found.tensors[key], tensor, rtol=0, atol=0)
        known.write(found, again)
    assert path.read_bytes() == again.read_bytes()
    notes = AuditNotes()
    known.audit(path, notes)
    assert (detect(path).format, notes.findings) == (name, [])


def test_recognizing_files_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("a note")
    script = (
        "import sys; from pathlib import Path; from qtool.formats.detect import recognize\n"
        "from qtool.formats.candidate import Candidate\n"
        f"assert recognize(Candidate.at(Path({str(tmp_path / 'note.txt')!r}))) is None\n"
        f"print(*(name for name in {HEAVY} if name in sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
