"""Sizes of the tensors of a graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class TensorSize:
    """The type and shape of one tensor.

    Attributes:
        dtype: its element type.
        shape: the lengths of its axes.
    """

    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in bytes; two values of 4 bits share one."""
        return math.ceil(self.elements * self.dtype.itemsize)


def declared_sizes(model: ir.Model) -> dict[str, TensorSize]:
    """Returns the sizes that the graph declares, by tensor; those with a free dimension or without a type are left out.

    Constants and tensors of subgraphs are included.
    """
    sizes = {}
    for value in _values(model):
        size = _declared(value)
        if size is not None and value.name:
            sizes[value.name] = size
    return sizes


def unknown_tensors(model: ir.Model, sizes: Mapping[str, TensorSize]) -> tuple[str, ...]:
    """Returns the computed tensors of the main graph that have no size, in the order of the nodes."""
    computed = (value for node in model.graph for value in node.outputs if value.name and _is_tensor(value))
    return tuple(value.name or "" for value in computed if value.name not in sizes)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _declared(value: ir.Value) -> TensorSize | None:
    if value.const_value is not None:
        return TensorSize(value.const_value.dtype, tuple(int(dim) for dim in value.const_value.shape.numpy()))
    if value.dtype is None or value.shape is None or not _has_values(value.dtype):
        return None
    dims = [dim for dim in value.shape if isinstance(dim, int) and dim >= 0]
    return TensorSize(value.dtype, tuple(dims)) if len(dims) == len(value.shape) else None


def _has_values(dtype: ir.DataType) -> bool:
    return dtype not in (ir.DataType.UNDEFINED, ir.DataType.STRING)


def _is_tensor(value: ir.Value) -> bool:
    return value.type is None or (isinstance(value.type, ir.TensorType) and _has_values(value.type.dtype))
