"""Writes models with their weights inside, one at a time, and checks models without them.

Source: ModelProto, GraphProto and TensorProto in https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import onnx
import onnx_ir as ir

from qtool.formats import protobuf
from qtool.formats.mapped_file import release_pages

# Smaller weights are part of the message that is built in memory.
_SMALLEST_STREAMED_BYTES = 1 << 20
# Fields of ModelProto, GraphProto and TensorProto.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9


def write_inline(model: ir.Model, path: Path) -> None:
    """Writes ``model`` as one file, which holds its weights: large ones are never in memory together.

    Raises:
        OSError: it cannot be written.
    """
    with _apart(model) as large:
        proto = ir.to_proto(model)
    streamed = [tensor for tensor in proto.graph.initializer if tensor.name in large]
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in large]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    heads = [_head(tensor, large[tensor.name].nbytes) for tensor in streamed]
    nbytes = len(graph) + sum(
        len(head) + large[tensor.name].nbytes for head, tensor in zip(heads, streamed, strict=True)
    )
    with path.open("wb") as file:
        file.write(proto.SerializeToString(deterministic=True))
        file.write(protobuf.prefix(_MODEL_GRAPH, nbytes) + graph)
        for head, tensor in zip(heads, streamed, strict=True):
            file.write(head)
            _write(large[tensor.name], file)


def _write(tensor: ir.TensorProtocol, file: IO[bytes]) -> None:
    if hasattr(tensor, "tofile"):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())
    release_tensor(tensor)


def release_tensor(tensor: ir.TensorProtocol) -> None:
    """Releases the pages of a tensor in a mapped file."""
    if isinstance(tensor, ir.Tensor) and isinstance(tensor.raw, np.ndarray):
        release_pages(tensor.raw)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turns the external initializers of ``model``, in place, into inputs, which have types and shapes alone."""
    graph = model.graph
    named = {value.name for value in graph.input}
    external = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    kept = [tensor for tensor in graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    for tensor in external:
        if tensor.name not in named:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return model


@contextmanager
def _apart(model: ir.Model) -> Iterator[dict[str, ir.TensorProtocol]]:
    """Puts a place holder for each large initializer of the main graph until the block ends; yields them by name."""
    large = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and value.const_value.dtype != ir.DataType.STRING
        and value.const_value.nbytes >= _SMALLEST_STREAMED_BYTES
    }
    try:
        for name, tensor in large.items():
            holder = ir.ExternalTensor(
                "", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
            holder.doc_string = tensor.doc_string
            holder.metadata_props.update(tensor.metadata_props)
            model.graph.initializers[name].const_value = holder
        yield large
    finally:
        for name, tensor in large.items():
            model.graph.initializers[name].const_value = tensor


def _head(tensor: onnx.TensorProto, nbytes: int) -> bytes:
    """Returns what is in front of the bytes of a tensor, the last field of its message."""
    tensor.ClearField("data_location")
    del tensor.external_data[:]
    rest: bytes = tensor.SerializeToString(deterministic=True) + protobuf.prefix(_TENSOR_RAW_DATA, nbytes)
    return protobuf.prefix(_GRAPH_INITIALIZER, len(rest) + nbytes) + rest
