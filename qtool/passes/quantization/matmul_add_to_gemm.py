"""Fuses MatMul and its bias into Gemm, where the activations are matrices, so that the bias can be int32.

A computed addend, such as a residual, is not a bias, and has no integer kernel. onnxruntime still fuses it into a
MatMul of matrices, which then runs in float; it does not fuse it into a Gemm.
"""

from __future__ import annotations

import onnx_ir as ir

from qtool.graph.constants import constant_array, is_constant, sole_consumer


class MatMulAddToGemm(ir.passes.InPlacePass):
    """Replaces MatMul(x, W) + b, of matrices, by Gemm(x, W, b), or by Gemm(x, W) + b where b is not a constant row."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Joins every such pair."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "MatMul" and node.domain == "" and _join(model.graph, node):
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _join(graph: ir.Graph, matmul: ir.Node) -> bool:
    product = matmul.outputs[0]
    # A MatMul between integers without Q after it stays an integer kernel, a Gemm with a float bias does not.
    if any(_is_dequantized(value) for value in matmul.inputs):
        return False
    adder = sole_consumer(product)
    if adder is None or adder.op_type != "Add" or adder.domain != "" or adder.graph is not graph:
        return False
    bias = adder.inputs[1 if adder.inputs[0] is product else 0]
    array, columns = constant_array(bias), _columns(matmul)
    if columns is None:
        return False
    if array is not None and array.shape in ((columns,), (1, columns)):
        gemm, replaced = ir.node("Gemm", [*matmul.inputs, bias], name=matmul.name), [adder, matmul]
    elif is_constant(matmul.inputs[1]):
        gemm, replaced = ir.node("Gemm", matmul.inputs, name=matmul.name), [matmul]
    else:
        return False
    result, output = gemm.outputs[0], replaced[0].outputs[0]
    result.name, result.type, result.shape = output.name, output.type, output.shape
    graph.insert_before(replaced[0], gemm)
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(replaced, safe=True)
    return True


def _is_dequantized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _columns(matmul: ir.Node) -> int | None:
    """Returns how many columns the product has, where both factors are known to be matrices and it is known."""
    shapes = [None if value is None else value.shape for value in matmul.inputs]
    if any(shape is None or len(shape) != 2 for shape in shapes) or shapes[1] is None:
        return None
    columns = shapes[1][1]
    return columns if isinstance(columns, int) else None
