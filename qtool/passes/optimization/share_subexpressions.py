"""Common subexpression elimination.

The library's pass does not handle subgraphs, and would make several layers share one DequantizeLinear, while
onnxruntime needs one per layer to run on integers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from hashlib import blake2b

import onnx_ir as ir

from qtool.graph.weight_records import record_text
from qtool.passes.normalization.remove_identities import bypass
from qtool.passes.optimization.control_flow import graphs_of

# Each random draw is different; Q/DQ belong to their layer.
_ALONE = frozenset(
    {
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear", "Sum"),
    }
)
# Larger tensors in attributes are not compared.
_LARGEST_COMPARED = 1024


class ShareSubexpressions(ir.passes.InPlacePass):
    """Removes nodes that repeat another one of their graph, and constants that repeat another one."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Visits the nodes once, in order, so that equal inputs are merged before their readers are compared."""
        shared = False
        for graph in graphs_of(model):
            shared = _share_constants(graph) or shared
            first: dict[Hashable, ir.Node] = {}
            for node in list(graph):
                key = _key(node)
                if key is None:
                    continue
                earlier = first.setdefault(key, node)
                if earlier is not node and _replace(node, earlier):
                    shared = True
        return ir.passes.PassResult(model, modified=shared)


def _share_constants(graph: ir.Graph) -> bool:
    """Lets the readers of equal constants read the first of them."""
    alike: dict[Hashable, list[ir.Value]] = defaultdict(list)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or value.is_graph_input() or value.is_graph_output():
            continue
        alike[tensor.dtype, tuple(tensor.shape.numpy())].append(value)
    shared = False
    for values in alike.values():
        first: dict[bytes, ir.Value] = {}
        for value in values if len(values) > 1 else ():
            if value.const_value is None or value.name is None:
                continue
            # A later change, such as merging an adapter, may apply to only one of them.
            history = record_text(value).encode()
            kept = first.setdefault(blake2b(value.const_value.tobytes() + history).digest(), value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                del graph.initializers[value.name]
                shared = True
    return shared


def _key(node: ir.Node) -> Hashable | None:
    """Returns a key that is equal for nodes that compute the same; None for nodes that stay."""
    # Whether a node of another domain always returns the same is not known.
    if node.op_type in _ALONE or node.domain != "":
        return None
    attributes = []
    for name, attribute in sorted(node.attributes.items()):
        value = _attribute(attribute)
        if value is None:
            return None
        attributes.append((name, value))
    if node.op_type == "Dropout" and len(node.inputs) > 2:
        return None
    outputs = tuple(bool(output.name) for output in node.outputs)
    return node.op_type, outputs, tuple(map(id, node.inputs)), tuple(attributes)


def _attribute(attribute: ir.Attr) -> Hashable | None:
    if attribute.is_ref() or attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return None
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.size > _LARGEST_COMPARED or tensor.dtype == ir.DataType.STRING:
            return None
        return tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes()
    value = attribute.value
    if isinstance(value, (int, float, str, bytes)):
        return attribute.type, value
    return (attribute.type, *value) if isinstance(value, (list, tuple)) else None


def _replace(node: ir.Node, earlier: ir.Node) -> bool:
    if len(node.outputs) == 1:
        return bypass(node, earlier.outputs[0])
    if node.graph is None or any(output.is_graph_output() for output in node.outputs):
        return False
    for output, kept in zip(node.outputs, earlier.outputs, strict=True):
        output.replace_all_uses_with(kept)
    node.graph.remove(node, safe=True)
    return True
