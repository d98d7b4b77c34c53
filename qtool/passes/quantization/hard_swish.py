"""Decomposes HardSwish into a sum, a clamp and a product, which run on integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.backends.qdq_placement.operators import OPERATORS
from qtool.graph.constants import add_constant, sole_consumer
from qtool.graph.names import Names
from qtool.passes.quantization.arithmetic import replace_node

# Later passes fold them into a layer or a pool.
_BECOME_INTEGERS = frozenset({"BatchNormalization", "ConvTranspose", "ReduceMean"})


class SpellOutHardSwish(ir.passes.InPlacePass):
    """Decomposes HardSwish, and x * HardSigmoid(x), into x * clip(x + b / a, 0, 1 / a) * a.

    That is x * max(0, min(1, a * x + b)), with a = 1/6 and b = 1/2 for HardSwish (operators HardSwish and HardSigmoid
    of the ONNX specification), with the one factor at the end, where it becomes part of a layer's weights. As one
    operator onnxruntime computes it in float, between a DequantizeLinear and a QuantizeLinear.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites float32 nodes of the graph itself whose slope is above zero, where integers may come and go."""
        modified = False
        names = Names(model.graph)
        for node in list(model.graph):
            if node.domain == "" and node.graph is model.graph and _rewrite(model.graph, node, names):
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _rewrite(graph: ir.Graph, node: ir.Node, names: Names) -> bool:
    source = node.inputs[0] if node.inputs else None
    if source is None or source.dtype != ir.DataType.FLOAT or not _may_be_integers(source.producer()):
        return False
    if node.op_type == "HardSwish" and _is_read_by_integers(node.outputs[0]):
        _spell_out(graph, node, source, slope=1 / 6, offset=0.5, names=names)
        return True
    if node.op_type != "HardSigmoid":
        return False
    product = sole_consumer(node.outputs[0])
    if product is None or product.op_type != "Mul" or product.domain != "" or product.graph is not graph:
        return False
    slope, offset = _attribute(node, "alpha", 0.2), _attribute(node, "beta", 0.5)
    if slope <= 0.0 or source not in product.inputs or not _is_read_by_integers(product.outputs[0]):
        return False
    _spell_out(graph, product, source, slope=slope, offset=offset, names=names)
    graph.remove(node, safe=True)
    return True


def _may_be_integers(node: ir.Node | None) -> bool:
    return node is not None and node.domain == "" and (node.op_type in OPERATORS or node.op_type in _BECOME_INTEGERS)


def _is_read_by_integers(value: ir.Value) -> bool:
    return any(_may_be_integers(use.node) for use in value.uses())


def _attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def _spell_out(graph: ir.Graph, node: ir.Node, source: ir.Value, *, slope: float, offset: float, names: Names) -> None:
    """Replaces ``node``, which computes the result, by four nodes; the last one has its name."""
    stem = node.outputs[0].name or node.name or "hard_swish"

    def constant(role: str, number: float) -> ir.Value:
        return add_constant(graph, f"{stem}_{role}", np.asarray(number, np.float32), names=names)

    def step(operator: str, *inputs: ir.Value) -> ir.Value:
        new = ir.node(operator, list(inputs), name=node.name and names.for_node(f"{node.name}_{operator.lower()}"))
        made = new.outputs[0]
        made.name, made.dtype, made.shape = names.free(f"{stem}_{operator.lower()}"), ir.DataType.FLOAT, source.shape
        graph.insert_before(node, new)
        return made

    shifted = step("Add", source, constant("offset", offset / slope))
    gate = step("Clip", shifted, constant("low", 0.0), constant("high", 1.0 / slope))
    product = step("Mul", source, gate)
    replace_node(graph, node, ir.node("Mul", [product, constant("slope", slope)], name=node.name))
