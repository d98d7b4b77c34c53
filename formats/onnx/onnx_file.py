"""Reads and writes ``.onnx`` files; the only module with raw protobuf."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from qtool.formats.errors import FormatError
from qtool.formats.findings import AuditNotes, Risk
from qtool.formats.library_noise import quiet_libraries
from qtool.formats.onnx.external_data import DataFile, OutsideError, Storage, check_claim, claim_from_entries
from qtool.formats.onnx.graph_check import ONNXRUNTIME_OPERATORS, broken_graph, broken_names, circular_functions
from qtool.formats.onnx.inline_tensors import check_inline
from qtool.formats.onnx.inline_weights import release_tensor, without_weights, write_inline
from qtool.formats.onnx.map_types import without_map_types, write_map_types
from qtool.formats.onnx.onnx_outline import read_outline
from qtool.formats.onnx.stored_tensor import leave_in_files

# A protobuf message holds at most 2 GiB; some room is left for everything that is not weights.
LARGEST_MESSAGE_BYTES = 1_800_000_000
# A thousand times the current opset; only damaged files have more.
_LARGEST_OPSET = 25_000
# The checker's error for an operator that is not in the standard.
_UNKNOWN_OPERATOR = re.compile(r"No Op registered for (\w+) with domain_version")
# Files up to this size are read at once where no values are kept: that takes a tenth of the time.
_READ_AT_ONCE_BYTES = 16 << 20
# Tensors that are held while they are written.
_LARGEST_WRITTEN_AT_ONCE_BYTES = 256 << 20


class OnnxFile:
    """Reads and writes ``.onnx`` files, with the weights of large ones in a second file."""

    def __init__(self, *, largest_message_bytes: int = LARGEST_MESSAGE_BYTES) -> None:
        """Sets the size above which weights go into a second file."""
        self._largest_message_bytes = largest_message_bytes

    def read(self, path: Path) -> ir.Model:
        """Reads the model; large weights, in it or in files beside it, stay there until they are used.

        Raises:
            FormatError: the file is damaged, or the location of its weights is invalid.
        """
        proto = _outline(path)
        if any(graph.sparse_initializer for graph in _graphs(proto)):
            raise FormatError(
                f"{path} keeps weights as sparse tensors, which are not read", fix="store them as dense ones"
            )
        return _checked(proto, path)

    def write(self, model: ir.Model, path: Path, storage: Storage | None = None) -> None:
        """Writes the model; with more than about 1.8 GB of weights, these go to ``<name>.data`` beside it.

        Args:
            model: the graph.
            path: the file.
            storage: where weights are kept, if not as said above.
        """
        self._write(model, path, storage or Storage())
        if any(value.type is None for value in model.graph.outputs):
            write_map_types(path)

    def _write(self, model: ir.Model, path: Path, storage: Storage) -> None:
        if storage.external or weights_nbytes(model) > self._largest_message_bytes:
            with quiet_libraries():  # it reports tensors above the limit, which get a separate file
                ir.save(
                    model,
                    path,
                    external_data=f"{path.name}.data",
                    max_shard_size_bytes=storage.max_shard_bytes,
                    max_in_flight_bytes=_LARGEST_WRITTEN_AT_ONCE_BYTES,
                    callback=_Releasing(),
                )
            return
        write_inline(model, path)

    def check(self, path: Path, origin: Path | None = None) -> None:
        """Runs the checker of the onnx package over a file.

        Args:
            path: the file.
            origin: the model that it was made from, which errors name.

        Raises:
            FormatError: the model breaks the ONNX standard.
        """
        problem = self.problem(path)
        if problem is not None:
            raise _damaged(origin or path, f": {problem}")

    def problem(self, path: Path) -> str | None:
        """Returns what the checker of the onnx package finds in a file; None where it finds nothing."""
        try:
            onnx.checker.check_model(without_weights(_outline(path)))
        except (onnx.checker.ValidationError, ValueError) as error:
            # The standard has no form for a value of unknown rank, which every runtime takes nevertheless.
            if "Field 'shape' of 'type' is required" in str(error):
                return None
            unknown = _UNKNOWN_OPERATOR.search(str(error))
            if unknown is not None and unknown[1] in ONNXRUNTIME_OPERATORS:
                return None
            return _first_line(error)
        return None


def audit_external_data(path: Path, notes: AuditNotes) -> None:
    """Notes the declared locations of the weights of the model in ``path``, and what is wrong with them.

    Raises:
        FormatError: the model is damaged.
    """
    proto = _parsed(path)
    for tensor in _inline_tensors(proto):
        try:
            check_inline(tensor, _nbytes(tensor))
        except FormatError as error:
            notes.add(Risk.INCONSISTENT, tensor.name, error.problem)
    for tensor in _external_tensors(proto):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        notes.files.append(entries.get("location", ""))
        try:
            check_claim(claim_from_entries(tensor.name, entries, _nbytes(tensor)), path)
        except OutsideError as error:
            notes.add(Risk.REACHES_OUTSIDE, tensor.name, error.problem)
        except FormatError as error:
            notes.add(Risk.INCONSISTENT, tensor.name, error.problem)


def external_files(path: Path) -> tuple[str, ...]:
    """Returns the files, relative to its folder, in which the model in ``path`` keeps weights; none of its own.

    Raises:
        FormatError: the model is damaged, or such a file is missing, too short, or outside of its folder.
    """
    proto = _parsed(path) if path.stat().st_size <= _READ_AT_ONCE_BYTES else _outline(path)
    known: dict[str, DataFile] = {}
    locations = set()
    for tensor in _external_tensors(proto):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        claim = claim_from_entries(tensor.name, entries, _nbytes(tensor))
        if claim.location != path.name:  # that is where the outline leaves what the model itself holds
            check_claim(claim, path, known)
            locations.add(claim.location)
    return tuple(sorted(locations))


def weights_nbytes(model: ir.Model) -> int:
    """Returns the bytes of all initializers, subgraphs included."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def _parsed(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's errors differ between its implementations
        raise _damaged(path, "") from error


class _Releasing:
    """Releases the pages of each tensor in a mapped file when the next one is about to be written."""

    def __init__(self) -> None:
        self._last: ir.TensorProtocol | None = None

    def __call__(self, tensor: ir.TensorProtocol, _: object) -> None:
        if self._last is not None:
            release_tensor(self._last)
        self._last = tensor


def _outline(path: Path) -> onnx.ModelProto:
    try:
        return read_outline(path)
    except Exception as error:  # as in _parsed
        raise _damaged(path, "") from error


def _checked(proto: onnx.ModelProto, path: Path) -> ir.Model:
    folder = _resolve_external(proto, path)
    names = broken_names(proto.graph)
    if names is not None:
        raise _damaged(path, f": {names}")
    for graph in _graphs(proto):
        without_map_types(graph, path)
    try:
        with quiet_libraries():
            model = ir.from_proto(proto)
    except Exception as error:  # the deserializer raises whatever the damage leads to
        raise _damaged(path, f": {_first_line(error)}") from error
    _check_meaning(model, path)
    problem = circular_functions(model) or broken_graph(model)
    if problem is not None:
        raise _damaged(path, f": {problem}")
    ir.external_data.set_base_dir(model.graph, folder)
    leave_in_files(model)
    return model


def _check_meaning(model: ir.Model, path: Path) -> None:
    """Rejects tensors without a type, and nodes with fewer inputs or outputs than their operator has."""
    opset = model.opset_imports.get("", 1)
    if not 1 <= opset <= _LARGEST_OPSET:
        raise _damaged(path, f": it has the opset {opset}")
    for value in (value for graph in model.graphs() for value in graph.initializers.values()):
        if value.const_value is not None and value.const_value.dtype == ir.DataType.UNDEFINED:
            raise _damaged(path, f": tensor '{value.name}' has no element type")
    for node in model.graph.all_nodes():
        # protobuf gives bytes for text that is no UTF-8.
        if not all(isinstance(text or "", str) for text in (node.op_type, node.domain, node.name)):
            raise _damaged(path, ": a node's name is no text")
        if node.domain or not onnx.defs.has(node.op_type, opset):
            continue
        schema = onnx.defs.get_schema(node.op_type, opset)
        if len(node.inputs) < schema.min_input or len(node.outputs) < schema.min_output:
            raise _damaged(path, f": {node.op_type} '{node.name}' has too few inputs or outputs")


def _resolve_external(proto: onnx.ModelProto, path: Path) -> Path:
    """Checks every tensor, and returns the folder that the locations of external ones are relative to.

    Where the model is a link into a folder with its data, as in the cache of Hugging Face, that is the real folder,
    and the locations become the real names: onnx-ir itself follows no links.
    """
    for tensor in _inline_tensors(proto):
        check_inline(tensor, _nbytes(tensor))
    external = _external_tensors(proto)
    real = []
    known: dict[str, DataFile] = {}
    for tensor in external:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        real.append(check_claim(claim_from_entries(tensor.name, entries, _nbytes(tensor)), path, known))
    folder = path.parent.resolve()
    if all(file.is_relative_to(folder) for file in real):
        return path.parent
    folder = path.resolve().parent
    for tensor, file in zip(external, real, strict=True):
        if not file.is_relative_to(folder):
            raise FormatError(
                f"the data of {path} is partly behind links and partly not", fix="copy the model and its data out"
            )
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = file.relative_to(folder).as_posix()
    return folder


def _external_tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in _tensors(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL]


def _inline_tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in _tensors(proto) if tensor.data_location != onnx.TensorProto.EXTERNAL]


def _nbytes(tensor: onnx.TensorProto) -> int:
    if any(dim < 0 for dim in tensor.dims):
        raise FormatError(f"tensor '{tensor.name}' has the shape {tuple(tensor.dims)}", fix="export the model again")
    if tensor.data_type == onnx.TensorProto.STRING and tensor.data_location != onnx.TensorProto.EXTERNAL:
        return 0
    try:
        bits = round(ir.DataType(tensor.data_type).itemsize * 8)
    except (ValueError, TypeError) as error:
        raise FormatError(
            f"tensor '{tensor.name}' has the element type {tensor.data_type}, which is none for numbers",
            fix="export the model again",
        ) from error
    return -(-math.prod(int(dim) for dim in tensor.dims) * bits // 8)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yields every tensor of the model: initializers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            waiting += [attribute.g] if attribute.HasField("g") else []
            waiting += attribute.graphs


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)


def _damaged(path: Path, reason: str) -> FormatError:
    return FormatError(f"{path} is a damaged ONNX model{reason}", fix="export or download it again")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
