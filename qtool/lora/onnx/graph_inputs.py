"""Adds graph inputs for the matrices of adapters, so that adapters can be exchanged at run time.

Each input has a default, zeros of rank one, so that the graph without an adapter computes the same as before. Source:
https://onnxruntime.ai/docs/genai/howto/build-model.html and the notes of onnxruntime 1.20 on ``LoraAdapter``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.errors import InputError
from qtool.graph.constants import add_constant, constant_array, integer_attribute
from qtool.graph.names import Names
from qtool.lora.merge.tensor_merge import WeightedChange
from qtool.lora.methods.changes import LowRank
from qtool.lora.onnx.places import Place
from qtool.qdq.packed_integers import is_packed, packed_integers

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
# The first IR version in which inputs may have initializers as defaults.
_LOWEST_IR_VERSION = 4


def input_names(weight: str) -> tuple[str, str]:
    """Returns the names of the two inputs that change a weight: rows and rank, rank and columns."""
    return f"{weight}.lora_left", f"{weight}.lora_right"


def add_inputs(model: ir.Model, weight: str, place: Place) -> None:
    """Gives the graph the inputs that change ``weight``, and adds their product to it.

    Where a MatMul reads the weight, its input also passes through both matrices, and where a Gather takes rows of it,
    rows of the first matrix pass through the second one: much less work than computing the product.

    Raises:
        InputError: the weight has a form that cannot be changed at run time.
    """
    if place.dequantize is not None and is_packed(place.dequantize):
        _add_inputs_beside_blocks(model, weight, place)
        return
    stored = constant_array(place.stored)
    if stored is None or place.dequantize is not None or place.offset is not None or _is_changed(place):
        raise InputError(
            f"'{weight}' is {place.form} in the graph, and adapters cannot be exchanged there",
            fix="merge the adapter instead, without --as-adapter",
        )
    left, right = input_names(weight)
    rest = int(np.prod(stored.shape[1:]))
    first = _input(model, left, (stored.shape[0], None), stored.dtype)
    second = _input(model, right, (None, rest), stored.dtype)
    names = Names(model.graph)
    readers = [use for use in place.stored.uses() if place.nodes is None or use.node in place.nodes]
    beside = [use for use in readers if _narrows(use.node, use.idx)]
    for use in beside:
        _beside(use.node, first, second, weight, names)
    others = [use for use in readers if use not in beside]
    if others:
        total = _changed_weight(model.graph, place.stored, first, second, stored.shape, weight, names)
        for use in others:
            use.node.replace_input_with(use.idx, total)


def _add_inputs_beside_blocks(model: ir.Model, weight: str, place: Place) -> None:
    """Adds the product of the input and both matrices behind each layer with packed integers, which stay as they are.

    Raises:
        InputError: the weight is scaled, or is a table and the weight of a layer at once.
    """
    form, nodes = exchanged_form(place), place.nodes or ()
    scaled = place.channel_scale is not None or (place.record is not None and not place.record.is_transposed_only)
    if form is None or scaled:
        raise InputError(
            f"'{weight}' is {place.form} in the graph, for layers or tables that read it in several ways, and adapters "
            "cannot be exchanged there",
            fix="merge the adapter instead, without --as-adapter",
        )
    left, right = input_names(weight)
    first = _input(model, left, (form.rows, None), form.dtype)
    second = _input(model, right, (None, form.columns), form.dtype)
    names = Names(model.graph)
    for node in nodes:
        _beside(node, first, second, weight, names)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangedForm:
    """The two matrices of an adapter beside a weight.

    Attributes:
        rows: of the first matrix.
        columns: of the second.
        dtype: of both.
        transposed: whether their product is the transposed change of the checkpoint's tensor.
    """

    rows: int
    columns: int
    dtype: np.dtype[Any]
    transposed: bool


def exchanged_form(place: Place) -> ExchangedForm | None:
    """Returns the form of the matrices for a weight in packed integers; None where its readers need several forms."""
    packed = place.dequantize is not None and is_packed(place.dequantize)
    stored = packed_integers(place.dequantize) if packed and place.dequantize is not None else None
    kinds = {node.op_type for node in place.nodes or ()}
    if stored is None or len(kinds) != 1:
        return None
    outputs, inputs = stored.integers.shape
    turned = place.record is not None and len(place.record.steps) % 2 == 1
    rows_first = place.transposed is turned
    table = "GatherBlockQuantized" in kinds
    rows, columns = (outputs, inputs) if table else (inputs, outputs)
    return ExchangedForm(rows=rows, columns=columns, dtype=stored.scale.dtype, transposed=rows_first is not table)


def _is_changed(place: Place) -> bool:
    return place.channel_scale is not None or place.record is not None


def parameters(
    steps: Sequence[WeightedChange], weight: str, place: Place, dtype: np.dtype[Any]
) -> dict[str, Array] | None:
    """Returns one adapter's values of the inputs of ``weight``; None where it does not change it.

    Raises:
        InputError: the change is not a product of two matrices.
    """
    if not steps:
        return None
    if len(steps) > 1 or not isinstance(steps[0].change, LowRank):
        raise InputError(
            f"{weight} is changed by {steps[-1].change.kind}, and only plain LoRA can be exchanged at run time",
            fix="merge the adapter instead, without --as-adapter",
        )
    change, factor = steps[0].change, steps[0].weight * steps[0].change.scale
    left, right = _numbers(change.left) * factor, _numbers(change.right)
    form = exchanged_form(place)
    if place.transposed if form is None else form.transposed:
        left, right = right.T, left.T
    dtype = dtype if form is None else form.dtype
    names = input_names(weight)
    return {names[0]: left.astype(dtype), names[1]: right.astype(dtype)}


def raise_ir_version(model: ir.Model) -> None:
    """Raises the graph's IR version to one in which inputs may have defaults."""
    model.ir_version = max(model.ir_version, _LOWEST_IR_VERSION)


def _numbers(matrix: torch.Tensor) -> Array:
    numbers: Array = matrix.detach().double().numpy()
    return numbers


def _input(model: ir.Model, name: str, shape: tuple[int | None, int | None], dtype: np.dtype[Any]) -> ir.Value:
    zeros = np.zeros([1 if length is None else length for length in shape], dtype)
    value = ir.Value(name=name, const_value=ir.tensor(zeros, name=name))
    value.dtype = ir.DataType.from_numpy(dtype)
    value.shape = ir.Shape([f"{name}.rank" if length is None else length for length in shape])
    model.graph.inputs.append(value)
    model.graph.register_initializer(value)
    return value


def _narrows(node: ir.Node, index: int) -> bool:
    """Returns whether a node commutes with the product: applied to the first matrix, it gives the same result."""
    rows = node.op_type == "Gather" and index == 0 and integer_attribute(node, "axis", 0) == 0
    return rows or (node.op_type == "MatMul" and index == 1)


def _beside(product: ir.Node, first: ir.Value, second: ir.Value, weight: str, names: Names) -> None:
    """Adds the product of the input and both matrices to the output of a MatMul or a Gather."""
    output, graph = product.outputs[0], product.graph
    if not isinstance(graph, ir.Graph):
        raise AssertionError(product)
    uses = list(output.uses())
    looks_up = product.op_type in ("Gather", "GatherBlockQuantized")
    operands = [first, product.inputs[1]] if looks_up else [product.inputs[0], first]
    kind = "Gather" if looks_up else "MatMul"
    narrow = ir.node(kind, inputs=operands, name=names.for_node(f"{weight}.lora_narrow"))
    wide = ir.node("MatMul", inputs=[narrow.outputs[0], second], name=names.for_node(f"{weight}.lora_wide"))
    total = ir.node("Add", inputs=[output, wide.outputs[0]], name=names.for_node(f"{weight}.lora_add"))
    for node, kind in ((narrow, "narrow"), (wide, "wide"), (total, "sum")):
        node.outputs[0].name = names.free(f"{weight}.lora_{kind}_of_{output.name}")
    graph.insert_after(product, [narrow, wide, total])
    for use in uses:
        use.node.replace_input_with(use.idx, total.outputs[0])
    if output.is_graph_output():
        _take_name(graph, output, total.outputs[0], names)


def _take_name(graph: ir.Graph, output: ir.Value, successor: ir.Value, names: Names) -> None:
    name = output.name
    output.name = names.free(f"{name}.without_lora")
    successor.name, successor.shape = name, output.shape
    if output.dtype is not None:
        successor.dtype = output.dtype
    for index, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[index] = successor


def _changed_weight(
    graph: ir.Graph,
    stored: ir.Value,
    first: ir.Value,
    second: ir.Value,
    shape: tuple[int, ...],
    weight: str,
    names: Names,
) -> ir.Value:
    product = ir.node("MatMul", inputs=[first, second], name=names.for_node(f"{weight}.lora_product"))
    target = add_constant(graph, f"{weight}.lora_shape", np.asarray(shape, np.int64), names=names)
    shaped = ir.node("Reshape", inputs=[product.outputs[0], target], name=names.for_node(f"{weight}.lora_reshape"))
    total = ir.node("Add", inputs=[stored, shaped.outputs[0]], name=names.for_node(f"{weight}.lora_add"))
    nodes = (product, shaped, total)
    for node, kind in zip(nodes, ("product", "shaped", "sum"), strict=True):
        node.outputs[0].name = names.free(f"{weight}.lora_{kind}")
    graph.insert_before(graph[0], nodes)
    return total.outputs[0]
