"""Files that do harm when they are opened, made byte by byte."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from qtool.cli.app import app

Audit = Callable[[Path], dict[str, Any]]


def text(value: str) -> bytes:
    """Returns the operation that pushes a text, in a pickle of protocol 4."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def make_payload(form: str, witness: Path) -> bytes:
    """Returns a pickle that makes the folder ``witness`` when it is opened, in one of the forms that there are."""
    path = str(witness)
    unicode = b"X" + len(path).to_bytes(4, "little") + path.encode()
    match form:
        case "global":
            return b"\x80\x02cos\nmkdir\n" + unicode + b"\x85R."
        case "stack global":
            return b"\x80\x04" + text("os") + text("mkdir") + b"\x93" + unicode + b"\x85R."
        case "names from the memo":
            return b"\x80\x04" + text("mkdir") + b"\x940" + text("os") + b"h\x00\x93" + unicode + b"\x85R."
        case "inst":
            return b"(" + unicode + b"ios\nmkdir\n."
        case "obj":
            return b"\x80\x02(cos\nmkdir\n" + unicode + b"o."
        case "reduce chain":
            imported = b"cbuiltins\n__import__\n" + b"U\x02os\x85R"
            return b"\x80\x02cbuiltins\ngetattr\n(" + imported + b"U\x05mkdirtR" + unicode + b"\x85R."
        case "nested":
            inner = make_payload("global", witness)
            return b"\x80\x03c_pickle\nloads\nB" + len(inner).to_bytes(4, "little") + inner + b"\x85R."
        case "broken behind":
            return make_payload("global", witness)[:-1] + b"\xff garbage"
        case "dotted":
            return b"\x80\x04" + text("torch.serialization") + text("os.mkdir") + b"\x93" + unicode + b"\x85R."
        case "python 2":
            return b"\x80\x02c__builtin__\neval\n" + _unicode(f"__import__('os').mkdir({path!r})") + b"\x85R."
    raise ValueError(form)


def _unicode(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def make_checkpoint(pickle: bytes, members: Mapping[str, bytes] | None = None, root: str = "m") -> bytes:
    """Returns a checkpoint in the zip format around a pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"{root}/data.pkl", pickle)
        archive.writestr(f"{root}/byteorder", b"little")
        for name, content in (members or {}).items():
            archive.writestr(f"{root}/{name}", content)
        archive.writestr(f"{root}/version", b"3\n")
    return stream.getvalue()


def rewrite(content: bytes, changes: Mapping[str, Callable[[bytes], bytes]]) -> bytes:
    """Returns a zip file with the members whose names end with a key changed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            for ending, change in changes.items():
                if info.filename.endswith(ending):
                    data = change(data)
            new.writestr(info.filename, data)
    return stream.getvalue()


@pytest.fixture
def payload() -> Callable[[str, Path], bytes]:
    return make_payload


@pytest.fixture
def checkpoint() -> Callable[..., bytes]:
    return make_checkpoint


@pytest.fixture
def rewritten() -> Callable[..., bytes]:
    return rewrite


@pytest.fixture
def run() -> Callable[..., Result]:
    """Runs ``qtool`` with arguments."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def audited(run: Callable[..., Result]) -> Audit:
    """Runs ``qtool audit --json`` and checks that the exit code says what the result does."""

    def audit(path: Path) -> dict[str, Any]:
        result = run("audit", path, "--json")
        report: dict[str, Any] = json.loads(result.stdout)
        assert result.exit_code == (0 if report["safe"] else 1), result.output
        assert report["safe"] == (not report["findings"])
        return report

    return audit


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A ``.pt2`` of a layer with a free batch dimension."""
    program = torch.export.export(
        torch.nn.Linear(3, 2).eval(), (torch.ones(2, 3),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, tmp_path / "layer.pt2")
    return tmp_path / "layer.pt2"
