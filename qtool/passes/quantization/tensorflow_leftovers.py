"""Removes a Transpose that tf2onnx leaves in front of reductions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, integer_attribute, sole_consumer
from qtool.graph.names import Names

_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"})


class ReduceBeforeTranspose(ir.passes.InPlacePass):
    """Reduces the axes of x itself where those of Transpose(x) are reduced and the rest stays in order.

    The axes have to be an input, as in opset 18, and to go (``keepdims`` 0).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites each Transpose that only such a reduction reads."""
        modified = False
        names = Names(model.graph)
        for node in [node for node in model.graph if node.op_type == "Transpose" and not node.domain]:
            reduction = sole_consumer(node.outputs[0])
            source = node.inputs[0]
            if reduction is None or source is None or "perm" not in node.attributes:
                continue
            axes = _axes_before(reduction, list(node.attributes["perm"].as_ints()))
            if axes is None:
                continue
            name = f"{reduction.inputs[1].name}_moved" if reduction.inputs[1] is not None else "axes"
            reduction.replace_input_with(0, source)
            moved = add_constant(model.graph, name, np.asarray(axes, np.int64), names=names)
            reduction.replace_input_with(1, moved)
            model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _axes_before(reduction: ir.Node, order: Sequence[int]) -> list[int] | None:
    """Returns the axes to reduce if the Transpose goes; None where the result would be another one."""
    if reduction.domain or reduction.op_type not in _REDUCTIONS or len(reduction.inputs) < 2:
        return None
    axes = constant_array(reduction.inputs[1])
    if axes is None or axes.size == 0 or integer_attribute(reduction, "keepdims", 1):
        return None
    reduced = {int(axis) % len(order) for axis in axes}
    kept = [order[axis] for axis in range(len(order)) if axis not in reduced]
    return sorted(order[axis] for axis in reduced) if kept == sorted(kept) else None
