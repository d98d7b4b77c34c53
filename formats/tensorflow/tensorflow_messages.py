"""Reads the messages of TensorFlow models: nodes, attributes, signatures; without TensorFlow.

Sources: tensorflow/core/framework/{graph,function,node_def,attr_value,tensor,tensor_shape,types}.proto and
tensorflow/core/protobuf/{saved_model,meta_graph}.proto, whose field numbers stand below.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO

from qtool.formats import protobuf

_DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    20: "resource",
    22: "uint32",
    23: "uint64",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Describes an input or output.

    Attributes:
        name: what it is called outside of the graph.
        tensor: the node that makes it.
        dtype: its element type, ``?`` where the file does not tell.
        dims: its shape, None for a length that is free; None where the file does not tell.
    """

    name: str
    tensor: str
    dtype: str = "?"
    dims: tuple[int | None, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The inputs and outputs of a callable.

    Attributes:
        inputs: its inputs.
        outputs: its outputs.
    """

    inputs: tuple[Endpoint, ...]
    outputs: tuple[Endpoint, ...]


@dataclass(slots=True)
class Node:
    """An operation.

    Attributes:
        name: its name.
        kind: its operator.
        inputs: the nodes that it reads.
        dtype: the type that it declares, ``?`` where it declares none.
        dims: the shape of its value, where it declares one.
        data_format: such as ``NHWC``, where it declares one.
        functions: the functions that it calls.
    """

    name: str = ""
    kind: str = ""
    inputs: list[str] = field(default_factory=list)
    dtype: str = "?"
    dims: tuple[int | None, ...] | None = None
    data_format: str | None = None
    functions: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Graph:
    """A program.

    Attributes:
        nodes: its nodes.
        functions: the nodes of each function that it may call.
    """

    nodes: list[Node]
    functions: Mapping[str, list[Node]]


def read_graph(stream: IO[bytes], start: int, end: int) -> Graph:
    """Reads a GraphDef (node = 1, library = 2, in which function = 1).

    Raises:
        WireError: the bytes are no message.
    """
    parts = children(stream, start, end)
    functions = (
        _function(stream, function)
        for library in parts.get(2, [])
        for function in children(stream, library.start, library.end).get(1, [])
    )
    return Graph([_node(stream, one) for one in parts.get(1, [])], dict(functions))


def _function(stream: IO[bytes], whole: protobuf.Field) -> tuple[str, list[Node]]:
    """Reads a FunctionDef: signature = 1 (its name = 1), node_def = 3."""
    parts = children(stream, whole.start, whole.end)
    names = [
        text(stream, name)
        for signature in parts.get(1, [])
        for name in children(stream, signature.start, signature.end).get(1, [])
    ]
    return "".join(names), [_node(stream, one) for one in parts.get(3, [])]


def _node(stream: IO[bytes], whole: protobuf.Field) -> Node:
    """Reads a NodeDef: name = 1, op = 2, input = 3, attr = 5 (a map: key = 1, value = 2)."""
    node = Node()
    for part in protobuf.fields(stream, whole.start, whole.end):
        if part.number == 1:
            node.name = text(stream, part)
        elif part.number == 2:
            node.kind = text(stream, part)
        elif part.number == 3:
            node.inputs.append(text(stream, part))
        elif part.number == 5:
            entry = children(stream, part.start, part.end)
            if 1 in entry and 2 in entry:
                _set_attribute(stream, node, text(stream, entry[1][0]), entry[2][0])
    return node


def _set_attribute(stream: IO[bytes], node: Node, key: str, value: protobuf.Field) -> None:
    """Reads an AttrValue: s = 2, type = 6, shape = 7, tensor = 8 (in which tensor_shape = 2), func = 10 (name = 1)."""
    parts = children(stream, value.start, value.end)
    if 10 in parts:
        called = children(stream, parts[10][0].start, parts[10][0].end).get(1, [])
        node.functions += [text(stream, name) for name in called]
    elif key == "data_format" and 2 in parts:
        node.data_format = text(stream, parts[2][0])
    elif key == "dtype" and 6 in parts:
        node.dtype = _DTYPES.get(parts[6][0].value, "?")
    elif key == "shape" and 7 in parts:
        node.dims = _dims(stream, parts[7][0])
    elif key == "value" and 8 in parts:
        tensor = children(stream, parts[8][0].start, parts[8][0].end)
        node.dims = _dims(stream, tensor[2][0]) if 2 in tensor else ()


def _dims(stream: IO[bytes], whole: protobuf.Field) -> tuple[int | None, ...] | None:
    """Reads a TensorShapeProto: dim = 2 (size = 1, -1 for unknown), unknown_rank = 3."""
    parts = children(stream, whole.start, whole.end)
    if any(one.value for one in parts.get(3, [])):
        return None
    sizes = [children(stream, dim.start, dim.end).get(1) for dim in parts.get(2, [])]
    # -1 is a varint of ten bytes.
    return tuple(0 if size is None else None if size[0].value >= 1 << 63 else size[0].value for size in sizes)


def read_signature(stream: IO[bytes], entry: protobuf.Field) -> tuple[str, Signature]:
    """Reads an entry of signature_def: key = 1, value = 2, which is a SignatureDef: inputs = 1, outputs = 2.

    Raises:
        WireError: the bytes are no message.
    """
    parts = children(stream, entry.start, entry.end)
    ends = children(stream, parts[2][0].start, parts[2][0].end) if 2 in parts else {}
    name = text(stream, parts[1][0]) if 1 in parts else ""
    inputs, outputs = (
        tuple(sorted((_tensor_info(stream, one) for one in ends.get(number, [])), key=lambda end: end.name))
        for number in (1, 2)
    )
    return name, Signature(inputs=inputs, outputs=outputs)


def _tensor_info(stream: IO[bytes], entry: protobuf.Field) -> Endpoint:
    """Reads an entry of a signature: key = 1, value = 2, a TensorInfo: name = 1, dtype = 2, tensor_shape = 3."""
    parts = children(stream, entry.start, entry.end)
    info = children(stream, parts[2][0].start, parts[2][0].end) if 2 in parts else {}
    return Endpoint(
        name=text(stream, parts[1][0]) if 1 in parts else "",
        tensor=text(stream, info[1][0]).partition(":")[0] if 1 in info else "",
        dtype=_DTYPES.get(info[2][0].value, "?") if 2 in info else "?",
        dims=_dims(stream, info[3][0]) if 3 in info else None,
    )


def children(stream: IO[bytes], start: int, end: int) -> dict[int, list[protobuf.Field]]:
    """Returns the fields of a message by their number.

    Raises:
        WireError: the bytes are no message.
    """
    found: dict[int, list[protobuf.Field]] = defaultdict(list)
    for part in protobuf.fields(stream, start, end):
        found[part.number].append(part)
    return found


def text(stream: IO[bytes], part: protobuf.Field) -> str:
    """Returns a field as text."""
    stream.seek(part.start)
    return stream.read(part.end - part.start).decode("utf-8", "replace")
