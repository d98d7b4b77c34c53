"""In which order onnxruntime's integer kernels sum up the products of a layer.

Kernels pair weights along the sum: those of a convolution lie with the channel running fastest, and two are taken at a
time. Depthwise convolutions have a kernel of their own, which multiplies in 32 bits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from qtool.graph.constants import integer_attribute
from qtool.weights.saturation import KernelOrder


def kernel_order(operator: str, rank: int, *, transposed: bool = False) -> KernelOrder:
    """Returns the order for the weight, of ``rank`` axes, of a Conv, Gemm or MatMul.

    ``transposed`` is a Gemm's transB. Source for Conv: onnxruntime reorders its filters to (K1, .., Kn, C, M).
    """
    if operator == "Conv":
        return KernelOrder((0, *range(2, rank), 1), rank - 1)
    if transposed:
        return KernelOrder((0, 1), 1)
    return KernelOrder((*range(rank - 2), rank - 1, rank - 2), 1)


def multiplies_in_32_bits(node: ir.Node, shape: Sequence[int]) -> bool:
    """Tells whether a layer with a weight of ``shape`` has onnxruntime's kernel for depthwise convolutions.

    ConvInteger has none.
    """
    return node.op_type in ("Conv", "QLinearConv") and (shape[0], shape[1]) == (integer_attribute(node, "group", 1), 1)


def orders_of(value: ir.Value, readers: Collection[str]) -> tuple[KernelOrder, ...]:
    """Returns the orders in which the layers among ``readers``, by name, sum up a weight's products."""
    found: dict[KernelOrder, None] = {}
    for use in value.uses():
        node = use.node
        if use.idx == 1 and node.name in readers and node.op_type in ("Conv", "Gemm", "MatMul") and value.shape:
            if multiplies_in_32_bits(node, value.shape.numpy()):
                continue
            transposed = node.op_type == "Gemm" and bool(integer_attribute(node, "transB", 0))
            found[kernel_order(node.op_type, len(value.shape), transposed=transposed)] = None
    return tuple(found)
