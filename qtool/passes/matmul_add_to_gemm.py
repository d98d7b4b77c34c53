"""Joins MatMul and the bias behind it, where the activations are matrices, so that the bias can be an integer too."""

from __future__ import annotations

import onnx_ir as ir

from qtool.passes.constants import constant_array, sole_consumer


class MatMulAddToGemm(ir.passes.InPlacePass):
    """Writes MatMul(x, W) + b as Gemm(x, W, b), for matrices x and W and a constant b with one number a column.

    What is computed at run time, such as a residual, is no bias: no integer kernel would take it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Joins every such pair."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "MatMul" and node.domain == "" and _join(model.graph, node):
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _join(graph: ir.Graph, matmul: ir.Node) -> bool:
    product = matmul.outputs[0]
    adder = sole_consumer(product)
    if adder is None or adder.op_type != "Add" or adder.domain != "" or adder.graph is not graph:
        return False
    bias = adder.inputs[1 if adder.inputs[0] is product else 0]
    array, columns = constant_array(bias), _columns(matmul)
    if array is None or columns is None or array.shape not in ((columns,), (1, columns)):
        return False
    gemm = ir.node("Gemm", [*matmul.inputs, bias], name=matmul.name)
    result, output = gemm.outputs[0], adder.outputs[0]
    result.name, result.type, result.shape = output.name, output.type, output.shape
    graph.insert_before(adder, gemm)
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove([adder, matmul], safe=True)
    return True


def _columns(matmul: ir.Node) -> int | None:
    """Returns how many columns the product has, where both factors are known to be matrices and it is known."""
    shapes = [None if value is None else value.shape for value in matmul.inputs]
    if any(shape is None or len(shape) != 2 for shape in shapes) or shapes[1] is None:
        return None
    columns = shapes[1][1]
    return columns if isinstance(columns, int) else None
