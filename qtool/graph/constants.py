"""Reading and adding constants of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.names import Names


def is_constant(value: ir.Value | None) -> bool:
    """Returns whether a value is a stored tensor that no caller can override."""
    return value is not None and value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def constant_array(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """Returns the values of a constant; None for a value that is computed at run time."""
    if value is None or not is_constant(value) or value.const_value is None:
        return None
    return value.const_value.numpy()


def add_constant(graph: ir.Graph, name: str, array: npt.NDArray[Any], *, names: Names | None = None) -> ir.Value:
    """Adds a constant called ``name``, or a similar name that is free.

    Args:
        graph: where to store it.
        name: its preferred name.
        array: its values.
        names: the names in use, where the caller keeps them; they are collected again otherwise.
    """
    free = (names or Names(graph)).free(name)
    value = ir.Value(name=free, const_value=ir.Tensor(np.asarray(array, order="C"), name=free))
    value.shape = ir.Shape(array.shape)
    value.dtype = ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def integer_attribute(node: ir.Node, name: str, default: int) -> int:
    """Returns an integer attribute, or its default where the node does not have it."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """Returns the only consumer of a value; None where there are more, or it is a graph output."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node


def constant_number(value: ir.Value | None) -> float | int | bool | None:
    """Returns the number in a constant of one element; None for other constants, and for values that are computed.

    Exporters also store scalars with axes of length 1.
    """
    array = constant_array(value)
    if array is None or array.size != 1 or array.dtype.kind in "OSU":
        return None
    number: float | int | bool = array.reshape(()).item()
    return number


def broadcast_number(constant: ir.Value | None, value: ir.Value) -> float | int | bool | None:
    """Returns the number that a constant broadcasts to all of ``value``; None where it would add axes to the result."""
    array, number = constant_array(constant), constant_number(constant)
    adds_none = array is not None and (array.ndim == 0 or (value.shape is not None and array.ndim <= len(value.shape)))
    return number if adds_none else None


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """Returns the constant bounds of a Clip; infinite where it has none."""
    low = constant_number(node.inputs[1]) if len(node.inputs) > 1 else None
    high = constant_number(node.inputs[2]) if len(node.inputs) > 2 else None
    return (float("-inf") if low is None else float(low)), (float("inf") if high is None else float(high))


def reads_rows(node: ir.Node) -> bool:
    """Returns whether a node picks rows of its first input, as from an embedding table."""
    return node.op_type == "Gather" and node.domain == "" and integer_attribute(node, "axis", 0) == 0


def has_rows_of_outputs(node: ir.Node) -> bool:
    """Returns whether a node reads its weight as rows, one an output: a Gemm with transB, or a Gather of rows."""
    return is_transposed(node) or reads_rows(node)


def is_transposed(node: ir.Node) -> bool:
    """Returns whether a MatMul or Gemm reads its weight with the output channels first: transB of Gemm."""
    return node.op_type == "Gemm" and bool(integer_attribute(node, "transB", 0))
