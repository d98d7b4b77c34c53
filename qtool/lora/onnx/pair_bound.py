"""Keeps merged weights within the 16-bit sums of x86 without VNNI."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.backends.onnxruntime_cpu.kernel_order import kernel_order, multiplies_in_32_bits
from qtool.calib.affine import AffineParams
from qtool.calib.granularity import PerChannel, PerTensor
from qtool.calib.grid import Grid
from qtool.graph.constants import integer_attribute
from qtool.qdq.scale_policy import ScalePolicy
from qtool.qdq.stored_integers import IntegerRules, StoredIntegers
from qtool.weights.round_to_nearest import QuantizedWeight
from qtool.weights.saturation import KernelOrder, limited, without_saturation

Array = npt.NDArray[Any]

_LAYERS = ("Conv", "Gemm", "MatMul")
# Integer operators, and the layers whose kernels they share.
_INTEGER_LAYERS = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}


def within_bound(
    node: ir.Node, stored: StoredIntegers, exact: Array, integers: Array, scale: Array, rules: IntegerRules
) -> tuple[Array, Array]:
    """Returns integers and scales with which no pair of weights adds up to more than ``rules`` allow.

    Args:
        node: the DequantizeLinear, MatMulInteger or ConvInteger that reads the weights.
        stored: the current weights.
        exact: the floats to store, in the shape of the integers.
        integers: the nearest integers for ``scale``.
        scale: in the shape of the scales.
        rules: the limit, and whether scales may change for it.
    """
    orders = _orders(node, integers.shape)
    if rules.largest_pair is None or not orders or stored.bits != 8 or not stored.signed or stored.block:
        return integers, scale
    single = scale.size == 1
    weight = QuantizedWeight(
        integers=integers,
        params=AffineParams(
            scale=scale.astype(np.float32).reshape(() if single else -1),
            zero_point=np.rint(stored.zero).astype(np.int8).reshape(() if single else -1),
            grid=Grid(bits=8, signed=True, symmetric=not stored.zero.any()),
            granularity=PerTensor() if single else PerChannel(stored.axis),
        ),
    )
    if stored.zero.any() or rules.scales is ScalePolicy.KEEP:
        return limited(weight, orders, rules.largest_pair).integers, scale
    found = without_saturation(weight, exact, orders, rules.largest_pair)
    return found.integers, found.params.scale.astype(scale.dtype).reshape(scale.shape)


def _orders(node: ir.Node, shape: tuple[int, ...]) -> tuple[KernelOrder, ...]:
    """Returns the orders in which the layers that read the weights of ``node`` add up their products."""
    if node.op_type in _INTEGER_LAYERS:
        source = node.inputs[1]
        direct = source is not None and source.producer() is None
        return (kernel_order(_INTEGER_LAYERS[node.op_type], len(shape)),) if direct else ()
    found: dict[KernelOrder, None] = {}
    for use in node.outputs[0].uses():
        layer, first = use.node, use.node.inputs[0]
        producer = None if first is None else first.producer()
        quantized = producer is not None and producer.op_type == "DequantizeLinear"
        if use.idx != 1 or layer.op_type not in _LAYERS or not quantized or multiplies_in_32_bits(layer, shape):
            continue
        transposed = layer.op_type == "Gemm" and bool(integer_attribute(layer, "transB", 0))
        found[kernel_order(layer.op_type, len(shape), transposed=transposed)] = None
    return tuple(found)
