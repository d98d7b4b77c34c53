"""Coverage: reads from onnxruntime's optimized graph which nodes of a QDQ model really run on integers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.backends.coverage import Coverage, NodeCoverage
from qtool.backends.execution import TARGET_KEY
from qtool.backends.onnxruntime_cpu.fusion_reasons import reads_foreign_types, reason_for_float
from qtool.backends.onnxruntime_cpu.targets import FUSE_SIGNED
from qtool.backends.qdq_placement.operators import OPERATORS, Kind
from qtool.formats.onnx.map_types import load_model
from qtool.formats.onnx.onnx_file import weights_nbytes
from qtool.graph.collection_pause import collection_paused
from qtool.graph.constants import integer_attribute, is_constant
from qtool.graph.unpacked_product import PACKED_DOMAINS, is_unpacked_product
from qtool.private_folder import private_folder
from qtool.runtime.graphs import saved
from qtool.runtime.hollow_graphs import hollow
from qtool.runtime.long_graphs import is_long, typed_parts
from qtool.runtime.session import NO_WEIGHTS, Session

_KERNELS = (
    "QLinear",
    "QGemm",
    "QAttention",
    "MatMulInteger",
    "DynamicQuantize",
    "ConvInteger",
)
# Its weights are integers, and where its accuracy level says so its products. onnxruntime makes it of any product with
# dequantized weights, also where a pair of Q and DQ was forgotten in front of it.
_PACKED = "MatMulNBits"
# As float products of MatMulNBits, it counts for its integer weights.
_UNPACKED = "MatMul on unpacked weights"
_CONVERSIONS = ("DynamicQuantizeLinear",)
_DOMAINS = ("", *PACKED_DOMAINS)
_QGEMM_OUTPUT_SCALE = 7
_WITH_BIAS = "/MatMulAddFusion"
# Larger graphs are optimized without their weights, which is faster and takes little memory.
_LARGEST_WITH_WEIGHTS_BYTES = 256 << 20
# What the optimizer makes of each byte of weights that are unpacked as a model loads.
_FLOAT_BYTES = 4


def integer_coverage(model: ir.Model) -> Coverage:
    """Opens ``model`` in onnxruntime and finds each of its quantizable nodes in the optimized graph.

    Nodes without a name get one. Quantizable are Conv, Gemm and MatMul, integer operators such as QLinearConv and
    MatMulInteger, and those with an integer kernel all of whose inputs are dequantized.

    Raises:
        RuntimeRefusedError: onnxruntime does not load the model.
    """
    common.NameFixPass()(model)
    with optimized_nodes(model) as kept:
        return coverage_in(model, kept)


def float_coverage(model: ir.Model) -> Coverage:
    """Returns the same for a graph without integers, which takes no opening; nodes without a name get one."""
    common.NameFixPass()(model)
    return coverage_in(model, {})


@contextmanager
def optimized_nodes(model: ir.Model) -> Iterator[Mapping[str, ir.Node]]:
    """Yields the nodes of the optimized graph, by name.

    A fused kernel keeps the name of the node that it replaces. A model for ARM is rewritten as it is there.

    Raises:
        RuntimeRefusedError: onnxruntime does not load the model.
    """
    found: dict[str, ir.Node] = {}
    unpacked_bytes = _FLOAT_BYTES if any(map(is_unpacked_product, model.graph)) else 1
    is_large = weights_nbytes(model) * unpacked_bytes > _LARGEST_WITH_WEIGHTS_BYTES
    with ExitStack() as stack, collection_paused(len(model.graph)):
        for part in typed_parts(model) if is_long(model) else [model]:
            found |= stack.enter_context(_optimized_part(part, is_large=is_large))
        # A MatMul that took in the bias behind it has a longer name.
        yield {name.removesuffix(_WITH_BIAS): node for name, node in found.items()} | found


@contextmanager
def _optimized_part(model: ir.Model, *, is_large: bool) -> Iterator[dict[str, ir.Node]]:
    with private_folder() as folder, ExitStack() as stack:
        optimized_path = folder / "optimized.onnx"
        message, weights = hollow(model) if is_large else (stack.enter_context(saved(model, folder)), NO_WEIGHTS)
        # At a higher level layouts change too, and with them the names of nodes.
        Session(
            message,
            level="extended",
            optimized_to=optimized_path,
            fuses_signed=fuses_signed(model),
            weights=weights,
            in_place=weights,
            prepacks=False,
        )
        yield {node.name: node for node in load_model(optimized_path).graph if node.name}


def fuses_signed(model: ir.Model) -> bool:
    """Returns whether a model is for a machine on which s8 activations are fused as they are."""
    return model.metadata_props.get(TARGET_KEY) in FUSE_SIGNED


def coverage_in(model: ir.Model, kept: Mapping[str, ir.Node]) -> Coverage:
    """Finds each quantizable node of ``model``, whose nodes all have names, among the nodes of ``optimized_nodes``."""
    return Coverage(nodes=tuple(_node_coverage(node, kept) for node in model.graph if _is_quantizable(node)))


def _is_quantizable(node: ir.Node) -> bool:
    if _computes_integers(node):
        return True
    operator = OPERATORS.get(node.op_type) if node.domain == "" else None
    if operator is None or operator.kind is Kind.CLAMPING:
        return False
    if operator.kind is Kind.LAYER:
        return True
    positions = range(len(node.inputs)) if operator.data_inputs is None else operator.data_inputs
    data = [node.inputs[index] for index in positions if index < len(node.inputs)]
    producers = [value.producer() for value in data if value is not None]
    if not producers or any(producer is None or producer.op_type != "DequantizeLinear" for producer in producers):
        return False
    return any(producer is not None and not is_constant(producer.inputs[0]) for producer in producers)


def _computes_integers(node: ir.Node) -> bool:
    """Returns whether an operator has integer arithmetic itself, unlike a float one between Q and DQ."""
    kernels = (*_KERNELS, _PACKED)
    return node.domain in _DOMAINS and node.op_type.startswith(kernels) and node.op_type not in _CONVERSIONS


def _reads_blocks(node: ir.Node) -> bool:
    """Returns whether only the weights of a layer were meant to be integers: in 4 bits, or in blocks."""
    producer = None if len(node.inputs) < 2 or node.inputs[1] is None else node.inputs[1].producer()
    if producer is None or producer.op_type != "DequantizeLinear" or producer.inputs[0] is None:
        return False
    narrow = producer.inputs[0].dtype in (ir.DataType.INT4, ir.DataType.UINT4)
    return narrow or integer_attribute(producer, "block_size", 0) > 0


def _node_coverage(node: ir.Node, kept: Mapping[str, ir.Node]) -> NodeCoverage:
    kernel = _kernel(node, kept)
    missed = None if kernel is not None else reason_for_float(node)
    return NodeCoverage(
        node=node.name or "",
        operator=node.op_type,
        kernel=kernel,
        reason=None if missed is None else missed.reason,
        fix=None if missed is None else missed.fix,
    )


def _kernel(node: ir.Node, kept: Mapping[str, ir.Node]) -> str | None:
    found = kept.get(node.name or "")
    if is_unpacked_product(node):
        return _UNPACKED
    if _computes_integers(node):
        # Alone or as part of a larger kernel; a node disappears only where it duplicates another one.
        return "removed" if found is None else found.op_type
    if reads_foreign_types(node):
        return None
    if found is None:
        # A node that only renames its values, such as a Reshape to the same shape, disappears.
        return "removed" if OPERATORS[node.op_type].kind is Kind.MOVING else None
    if found.op_type.startswith(_KERNELS) or (found.op_type == _PACKED and _reads_blocks(node)):
        return found.op_type
    if found.op_type == node.op_type and _holds_integers(found.inputs[0]):
        return f"{found.op_type} on integers"
    return None


def _holds_integers(value: ir.Value | None) -> bool:
    """Returns whether a value of the optimized graph holds quantized integers."""
    producer = None if value is None else value.producer()
    if producer is None:
        return False
    if producer.op_type == "QuantizeLinear" or producer.op_type.startswith("QLinear"):
        return True
    if producer.op_type == "QGemm":
        # Without an output scale its output is float.
        return len(producer.inputs) > _QGEMM_OUTPUT_SCALE and producer.inputs[_QGEMM_OUTPUT_SCALE] is not None
    operator = OPERATORS.get(producer.op_type)
    return operator is not None and operator.kind is Kind.MOVING and _holds_integers(producer.inputs[0])
