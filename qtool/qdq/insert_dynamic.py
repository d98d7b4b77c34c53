"""Writes layers that quantize their activations as they run, in the form that onnxruntime turns into one kernel.

The form: DynamicQuantizeLinear → MatMulInteger → Cast → Mul by both scales [→ Add]. Every layer gets a
DynamicQuantizeLinear of its own, which onnxruntime then makes part of DynamicQuantizeMatMul; where several layers read
the same tensor it keeps one of them for all, and each layer becomes MatMulIntegerToFloat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, is_transposed
from qtool.graph.names import Names
from qtool.graph.weight_records import Rearranged, record_steps
from qtool.plan import DynamicPlan
from qtool.weights.round_to_nearest import QuantizedWeight


def insert_dynamic(model: ir.Model, plan: DynamicPlan, weights: Mapping[str, QuantizedWeight]) -> ir.Model:
    """Replaces every MatMul and Gemm of ``plan`` in place, and returns ``model``.

    The MatMulInteger keeps the name of the layer, and the result that of the layer's output.

    Args:
        model: a prepared model.
        plan: what to quantize.
        weights: integers by the name of every weight in the plan.
    """
    if not plan.weights:
        return model
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    nodes = {node.name: node for node in model.graph}
    writer = _Writer(model.graph)
    for tensor, weight_plan in plan.weights.items():
        writer.layers([nodes[name] for name in weight_plan.nodes], values[tensor], weights[tensor])
    return model


class _Writer:
    """Replaces layers of one graph; new values get names that are free in it."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._names = Names(graph)
        self._order = {node: position for position, node in enumerate(graph)}

    def layers(self, readers: Sequence[ir.Node], value: ir.Value, weight: QuantizedWeight) -> None:
        """Replaces all layers that share one weight, which stays one tensor."""
        turned = [reader for reader in readers if is_transposed(reader)]
        all_turned = len(turned) == len(readers)
        integers = weight.integers.T if all_turned else weight.integers
        stored = add_constant(self._graph, f"{value.name}_quantized", integers, names=self._names)
        turning = (Rearranged(shape=weight.integers.shape, order=(1, 0)),) if all_turned else ()
        record_steps(stored, value, *turning)
        scale = add_constant(self._graph, f"{value.name}_scale", weight.params.scale, names=self._names)
        zero_point = None
        # Zero is what its absence means, and saves the kernel the sums that it needs otherwise.
        if weight.params.zero_point.any():
            zeros = weight.params.zero_point
            zero_point = add_constant(self._graph, f"{value.name}_zero_point", zeros, names=self._names)
        transposed = stored if all_turned or not turned else self._transposed(stored, turned)
        for reader in readers:
            self._layer(reader, [transposed if reader in turned else stored, scale, zero_point])
        if not value.uses() and not value.is_graph_output() and value.name is not None:
            self._graph.initializers.pop(value.name, None)

    def _transposed(self, stored: ir.Value, readers: Sequence[ir.Node]) -> ir.Value:
        """Turns integers for layers that read them the other way round; onnxruntime does it once, as it loads."""
        node = ir.node("Transpose", [stored], {"perm": [1, 0]}, name=self._names.for_node(f"{stored.name}_Transpose"))
        self._graph.insert_before(min(readers, key=self._order.__getitem__), node)
        return self._named(node.outputs[0], f"{stored.name}_transposed")

    def _layer(self, node: ir.Node, weight: Sequence[ir.Value | None]) -> None:
        integers, weight_scale, zero_point = weight
        output, name = node.outputs[0], node.name
        quantize = ir.node(
            "DynamicQuantizeLinear",
            [node.inputs[0]],
            num_outputs=3,
            name=self._node_name(node, "DynamicQuantizeLinear"),
        )
        quantized, scale, zero = quantize.outputs
        inputs = [quantized, integers, zero] if zero_point is None else [quantized, integers, zero, zero_point]
        product = ir.node("MatMulInteger", inputs, name=name)
        product.metadata_props.update(node.metadata_props)
        cast = ir.node("Cast", product.outputs, {"to": ir.DataType.FLOAT}, name=self._node_name(node, "Cast"))
        scales = ir.node("Mul", [scale, weight_scale], name=self._node_name(node, "scales"))
        result = ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=self._node_name(node, "Mul"))
        new = [quantize, product, cast, scales, result]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and not _is_zero(bias):
            self._named(result.outputs[0], f"{output.name}_without_bias")
            result = ir.node("Add", [result.outputs[0], bias], name=self._node_name(node, "Add"))
            new.append(result)
        for value, suffix in (
            (quantized, "quantized"),
            (scale, "scale"),
            (zero, "zero_point"),
            (product.outputs[0], "product"),
            (cast.outputs[0], "cast"),
            (scales.outputs[0], "scales"),
        ):
            self._named(value, f"{name}_{suffix}")
        ir.convenience.replace_nodes_and_values(self._graph, node, [node], new, [output], result.outputs)
        if bias is not None and bias.is_initializer() and not bias.uses() and bias.name is not None:
            self._graph.initializers.pop(bias.name, None)

    def _node_name(self, layer: ir.Node, role: str) -> str:
        return self._names.for_node(f"{layer.name}_{role}")

    def _named(self, value: ir.Value, wish: str) -> ir.Value:
        value.name = self._names.free(wish)
        return value


def _is_zero(bias: ir.Value) -> bool:
    array = constant_array(bias)
    return array is not None and not array.any()
