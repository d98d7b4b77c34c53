"""Fingerprints of models and files by their content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx_ir as ir

_CHUNK_BYTES = 1 << 20


def graph_fingerprint(model: ir.Model) -> str:
    """Returns the SHA-256, in hex, of a graph's operators, their wiring and every stored number.

    Names of the model, its producer and its metadata do not count. Weights are hashed one at a time.
    """
    digest = hashlib.sha256()

    def put(*parts: object) -> None:
        digest.update("\x1f".join(str(part) for part in parts).encode() + b"\x1e")

    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        put("node", node.domain, node.op_type, node.name, *(value.name if value else "" for value in node.inputs))
        put("out", *(value.name for value in node.outputs))
        for name in sorted(node.attributes):
            attribute = node.attributes[name]
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                continue  # its nodes come by themselves
            is_tensor = attribute.type == ir.AttributeType.TENSOR
            put("attribute", name, _content(attribute.as_tensor()) if is_tensor else attribute.value)
    for name in sorted(model.graph.initializers):
        tensor = model.graph.initializers[name].const_value
        if tensor is not None:
            put("weight", name, tensor.dtype, tuple(tensor.shape))
            digest.update(_content(tensor))
    put("interface", *(value.name for value in (*model.graph.inputs, *model.graph.outputs)))
    return digest.hexdigest()


def _content(tensor: ir.TensorProtocol) -> bytes:
    if tensor.dtype == ir.DataType.STRING:
        # Of texts that stand behind each other, only their lengths tell where one ends.
        return b"".join(len(text).to_bytes(8, "little") + text for text in map(_encoded, tensor.numpy().reshape(-1)))
    return tensor.tobytes()


def _encoded(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def file_sha256(path: Path) -> str:
    """Returns the SHA-256, in hex, of a file's bytes, or of the names and bytes of a folder's files."""
    digest = hashlib.sha256()
    if path.is_dir():
        for entry in sorted(path.rglob("*"), key=lambda entry: entry.relative_to(path).as_posix()):
            if entry.is_file():
                digest.update(f"{entry.relative_to(path).as_posix()}\x1f{file_sha256(entry)}\x1e".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def path_bytes(path: Path) -> int:
    """Returns the size of a file, or of all files of a folder."""
    if path.is_dir():
        return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
    return path.stat().st_size


def data_sha256(source: str) -> str | None:
    """Returns the SHA-256 of a data file, or of the names and bytes of a folder's files; None for a function."""
    path = Path(source)
    return file_sha256(path) if path.exists() else None
