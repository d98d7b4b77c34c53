"""Shortens chains of additions and multiplications by constants, and moves factors towards the next layer.

Decomposed activations such as x * clip(x + 3, 0, 6) / 6 * scale + offset would be rounded after every step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, sole_consumer
from qtool.graph.names import Names

# An offset divided by a smaller factor could become imprecise in float32.
_SMALLEST_FACTOR = 1e-6
# Steps after a normalization that still belong to it: a scale and an offset, and those of another one.
_LONGEST_TAIL = 4


class JoinConstantChains(ir.passes.InPlacePass):
    """Makes (x * a) * b one product, (x + a) + b one sum, and x * a + b the product (x + b / a) * a.

    The last only for constants that are one number for the tensor or one per channel, and only where nothing else reads
    the values between.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites until nothing changes."""
        modified = False
        names = Names(model.graph)
        changed = True
        while changed:
            changed = False
            for node in list(model.graph):
                joined = node.graph is model.graph and _join(model.graph, node, names)
                if joined or (node.graph is model.graph and _swap(model.graph, node, names)):
                    changed = modified = True
        return ir.passes.PassResult(model, modified)


def constant_operand(node: ir.Node) -> tuple[ir.Value, npt.NDArray[np.float32]] | None:
    """Returns the computed and the float32 constant operand of an Add or Mul that has one of each."""
    if node.domain != "" or node.op_type not in ("Add", "Mul"):
        return None
    for index in (0, 1):
        constant, other = constant_array(node.inputs[index]), node.inputs[1 - index]
        if constant is not None and other is not None and constant_array(other) is None and _is_float32(constant):
            return other, constant
    return None


def is_normalized(value: ir.Value) -> bool:
    """Returns whether a value comes from a division by something computed, perhaps scaled and shifted already.

    Such a decomposed normalization is one fast operator for the runtime as long as it keeps its form.
    """
    producer = value.producer()
    for _ in range(_LONGEST_TAIL):
        found = None if producer is None else constant_operand(producer)
        if found is None:
            break
        producer = found[0].producer()
    return producer is not None and producer.op_type in ("Div", "LayerNormalization", "SkipLayerNormalization")


def _join(graph: ir.Graph, second: ir.Node, names: Names) -> bool:
    """Merges two operations of the same kind."""
    found = constant_operand(second)
    first = None if found is None else found[0].producer()
    if found is None or first is None or first.op_type != second.op_type or first.graph is not graph:
        return False
    inner = constant_operand(first)
    if inner is None or sole_consumer(found[0]) is not second:
        return False
    exact = (inner[1].astype(np.float64), found[1].astype(np.float64))
    both = (exact[0] * exact[1] if second.op_type == "Mul" else exact[0] + exact[1]).astype(np.float32)
    # Broadcasting the two constants must not make more of them than the tensor takes from either.
    if both.size > max(inner[1].size, found[1].size) or not np.isfinite(both).all():
        return False
    second.replace_input_with(0, inner[0])
    second.replace_input_with(1, add_constant(graph, f"{second.name}_constant", both, names=names))
    graph.remove(first, safe=True)
    return True


def _swap(graph: ir.Graph, add: ir.Node, names: Names) -> bool:
    """Turns x * a + b into (x + b / a) * a."""
    found = constant_operand(add) if add.op_type == "Add" else None
    mul = None if found is None else found[0].producer()
    if found is None or mul is None or mul.op_type != "Mul" or mul.graph is not graph:
        return False
    inner = constant_operand(mul)
    if inner is None or sole_consumer(found[0]) is not add or found[1].size > inner[1].size:
        return False
    if is_normalized(inner[0]):
        return False
    if (np.abs(inner[1]) < _SMALLEST_FACTOR).any():
        return False
    offset = (found[1].astype(np.float64) / inner[1].astype(np.float64)).astype(np.float32)
    if offset.size > inner[1].size:
        return False
    source, product, total = inner[0], mul.outputs[0], add.outputs[0]
    readers = list(total.uses())
    factor = next(value for value in mul.inputs if value is not source)
    # The two nodes are swapped, and with them the names of their outputs.
    add.replace_input_with(0, source)
    add.replace_input_with(1, add_constant(graph, f"{add.name}_offset", offset, names=names))
    mul.replace_input_with(0, total)
    mul.replace_input_with(1, factor)
    for use in readers:
        use.node.replace_input_with(use.idx, product)
    for position, value in enumerate(graph.outputs):
        if value is total:
            graph.outputs[position] = product
    total.name, product.name = product.name, total.name
    graph.remove(add)
    graph.insert_before(mul, add)
    return True


def _is_float32(array: npt.NDArray[np.generic]) -> bool:
    return array.dtype == np.float32
