"""Finds the layers before a logarithm, as in spectrograms computed inside audio models.

An 8-bit grid is as coarse for small values as for large ones. A logarithm amplifies small values, so that their
rounding errors dominate the result.
"""

from __future__ import annotations

import onnx_ir as ir

from qtool.backends.qdq_placement.operators import OPERATORS, Kind

_REASON = "its values go into a logarithm, which magnifies the rounding errors of small ones"
# Operators between the layers of a spectrogram and its logarithm. Any other operator, in particular an activation
# function of a trained network, ends the search; so does Softmax, whose logarithm is taken of few and large values.
_PASSED = frozenset(
    {
        *("Abs", "Add", "AveragePool", "Cast", "Clip", "Concat", "Div", "Identity", "Max", "Mul", "Neg", "Pad", "Pow"),
        *("ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Reshape", "Slice", "Split", "Sqrt", "Squeeze"),
        *("Sub", "Sum", "Transpose", "Unsqueeze"),
    }
)


def layers_before_logarithms(graph: ir.Graph) -> dict[str, str]:
    """Returns, by node name, why each layer that leads to a Log through arithmetic alone should stay float.

    The search passes other layers too: a spectrogram consists of several in sequence.
    """
    found: dict[str, str] = {}
    seen: set[ir.Node] = set()
    waiting = [node for node in graph if node.op_type == "Log" and node.domain == ""]
    while waiting:
        node = waiting.pop()
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer is None or producer in seen or producer.domain != "" or producer.graph is not graph:
                continue
            operator = OPERATORS.get(producer.op_type)
            is_layer = operator is not None and operator.kind is Kind.LAYER
            if not is_layer and producer.op_type not in _PASSED:
                continue
            seen.add(producer)
            waiting.append(producer)
            if is_layer and producer.name:
                found[producer.name] = _REASON
    return found
