"""Reads an ONNX model without its weights: large tensors become references into the model file itself."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import onnx

from qtool.formats import protobuf

# Smaller tensors are read: shape inference needs the values of shapes and axes.
_SMALLEST_LEFT_OUT_BYTES = 1024
# Fields of ModelProto, GraphProto and TensorProto, onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9


def read_outline(path: Path) -> onnx.ModelProto:
    """Parses the model in ``path``, which ``detect`` has checked; its large initializers stay in the file.

    Each of them refers to its own bytes as external data in the model file, so that callers that need the values can
    still read them. Data that is external already stays so.

    Raises:
        google.protobuf.message.DecodeError: the model is damaged.
        WireError: the model is damaged.
    """
    model = onnx.ModelProto()
    graphs: list[protobuf.Field] = []
    with path.open("rb") as stream:
        for field in protobuf.fields(stream, 0, path.stat().st_size):
            if field.number == _MODEL_GRAPH:
                graphs.append(field)
            else:
                model.MergeFromString(_encoded(stream, field))
        for graph in graphs:
            _read_graph(model.graph, stream, graph, path.name)
    return model


def _read_graph(graph: onnx.GraphProto, stream: IO[bytes], whole: protobuf.Field, location: str) -> None:
    # Fields behind each other are read at once: a graph may have a hundred thousand nodes.
    rest, position, begun = bytearray(), whole.start, whole.start
    for field in list(protobuf.fields(stream, whole.start, whole.end)):
        if field.number == _GRAPH_INITIALIZER:
            rest += _bytes(stream, begun, position)
            begun = field.end
            if field.end - field.start >= _SMALLEST_LEFT_OUT_BYTES:
                _read_tensor(graph.initializer.add(), stream, field, location)
            else:
                graph.initializer.add().ParseFromString(_bytes(stream, field.start, field.end))
        position = field.end
    rest += _bytes(stream, begun, position)
    graph.MergeFromString(bytes(rest))


def _read_tensor(tensor: onnx.TensorProto, stream: IO[bytes], whole: protobuf.Field, location: str) -> None:
    raw: protobuf.Field | None = None
    for field in list(protobuf.fields(stream, whole.start, whole.end)):
        if field.number == _TENSOR_RAW_DATA:
            raw = field
        else:
            tensor.MergeFromString(_encoded(stream, field))
    # Whether the values are external is known at the end: of a field that comes twice the last one counts.
    if raw is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    if raw.end - raw.start < _SMALLEST_LEFT_OUT_BYTES:
        tensor.MergeFromString(_encoded(stream, raw))
        return
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    place = {"location": location, "offset": raw.start, "length": raw.end - raw.start}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))


def _bytes(stream: IO[bytes], start: int, end: int) -> bytes:
    stream.seek(start)
    return stream.read(end - start)


def _encoded(stream: IO[bytes], field: protobuf.Field) -> bytes:
    """Returns the field including its tag and length prefix."""
    nbytes = field.end - field.start
    content = _bytes(stream, field.start, field.end)
    if field.wire_type == protobuf.BYTES:
        return protobuf.prefix(field.number, nbytes) + content
    return protobuf.varint(field.number << 3 | field.wire_type) + content
