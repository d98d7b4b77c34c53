"""MatMulNBits whose weights are unpacked once, as the model loads, and multiplied in float.

onnxruntime's own kernel for weights of 8 bits and float activations unpacks them in every run: on a processor with
AVX-512 a token of a language model took eight times as long as with float weights. This one is a function of the model,
named alike in a domain of its own and with the same inputs and attributes; onnxruntime inlines it and folds what reads
constants alone, so that a float MatMul is left. The file stays small, and the memory of a run is the float model's.
"""

from __future__ import annotations

import onnx_ir as ir

PACKED_DOMAIN = "com.microsoft"
# The second one is for inputs that do not fill whole blocks.
UNPACKED_DOMAIN, CUT_DOMAIN = UNPACKED_DOMAINS = ("qtool", "qtool.cut")
# All multiply by packed weights of the same form.
PACKED_DOMAINS = (PACKED_DOMAIN, *UNPACKED_DOMAINS)
UNPACKED_BITS = 8
# Accuracy levels of MatMulNBits: float products, and products whose activations are rounded to 8 bits in the kernel.
EXACT_LEVEL, INTEGER_LEVEL = 0, 4
_PRODUCT = "MatMulNBits"
_ATTRIBUTES = ("K", "N", "bits", "block_size", "accuracy_level")
_INPUTS = ("input", "stored", "scales", "zero_points")


def settle_unpacked_products(model: ir.Model) -> None:
    """Gives a model the functions that its nodes call, and takes the others away."""
    called = {node.domain for node in model.graph.all_nodes() if is_unpacked_product(node)}
    for domain in UNPACKED_DOMAINS:
        function = _function(model.opset_imports[""], domain)
        if domain in called:
            model.functions.setdefault(function.identifier(), function)
            model.opset_imports.setdefault(domain, 1)
        else:
            model.functions.pop(function.identifier(), None)
            model.opset_imports.pop(domain, None)


def _function(opset: int, domain: str) -> ir.Function:
    """Returns the product with (integers - zero points) * scales, (outputs, inputs).

    onnxruntime holds what every step makes until all are folded, so that there are as few as can be.
    """
    given = [ir.Value(name=name) for name in _INPUTS]
    count = ir.Node("", "Constant", [], [ir.RefAttr("value_int", "K", ir.AttributeType.INT)])
    tape = ir.tape.Tape()
    per_block, rows = (tape.op("Constant", [], {"value_ints": shape}) for shape in ((0, 0, 1), (0, -1)))
    whole, zeros = (tape.op("Cast", [value], {"to": ir.DataType.FLOAT}) for value in (given[1], given[3]))
    zeros, scales = (tape.op("Reshape", [value, per_block]) for value in (zeros, given[2]))
    blocks = tape.op("Mul", [tape.op("Sub", [whole, zeros]), scales])
    weight = tape.op("Reshape", [blocks, rows])
    if domain == CUT_DOMAIN:
        first, one = (tape.op("Constant", [], {"value_ints": (number,)}) for number in (0, 1))
        weight = tape.op("Slice", [weight, first, tape.op("Reshape", [count.outputs[0], one]), one])
    product = tape.op("FusedMatMul", [given[0], weight], {"transB": 1}, domain=PACKED_DOMAIN)
    nodes = [*([count] if domain == CUT_DOMAIN else []), *tape.nodes]
    for number, node in enumerate(nodes):
        node.outputs[0].name = f"value_{number}"
    imports = {"": opset, PACKED_DOMAIN: 1}
    graph = ir.Graph(given, [product], nodes=nodes, opset_imports=imports, name=_PRODUCT)
    attributes = [ir.Attr(name, ir.AttributeType.INT, None) for name in _ATTRIBUTES]
    return ir.Function(domain, _PRODUCT, graph=graph, attributes=attributes)


def is_of_the_model(function: ir.Function) -> bool:
    """Returns whether a function is one that a model's author wrote, which says nothing of how weights are stored."""
    return function.domain not in UNPACKED_DOMAINS


def is_unpacked_product(node: ir.Node) -> bool:
    """Returns whether a node multiplies by packed weights that are unpacked as the model loads."""
    return node.domain in UNPACKED_DOMAINS and node.op_type == _PRODUCT
