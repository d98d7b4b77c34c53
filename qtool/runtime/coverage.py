"""Reads off onnxruntime's own optimized graph which nodes of a QDQ model it really runs on integers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qtool.passes.constants import is_constant
from qtool.placement.operators import OPERATORS, Kind
from qtool.runtime.fusion_reasons import reason_for_float
from qtool.runtime.graphs import saved
from qtool.runtime.session import Session

_KERNELS = (
    "QLinear",
    "QGemm",
    "QAttention",
    "MatMulInteger",
    "DynamicQuantize",
    "ConvInteger",
)
# Behind a layer its Q may come after an activation that the kernel absorbs.
_ABSORBED = ("Relu", "Clip")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCoverage:
    """Says what became of one node that could run on integers.

    Attributes:
        node: its name.
        operator: its type.
        kernel: the integer kernel that runs it; None when it stays float.
        reason: why it stays float; None when it does not.
    """

    node: str
    operator: str
    kernel: str | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCoverage:
    """Counts the nodes of one operator type that could run on integers, and those that do."""

    operator: str
    integer: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Says how much of a model runs on integers.

    Attributes:
        nodes: every node that could, in graph order.
    """

    nodes: tuple[NodeCoverage, ...]

    @property
    def total(self) -> int:
        """How many nodes could run on integers."""
        return len(self.nodes)

    @property
    def integer(self) -> int:
        """How many do."""
        return sum(node.kernel is not None for node in self.nodes)

    @property
    def share(self) -> float:
        """The share that does, 0 to 1; 0 when there are none."""
        return self.integer / self.total if self.total else 0.0

    @property
    def misses(self) -> tuple[NodeCoverage, ...]:
        """The nodes that stay float, each with its reason."""
        return tuple(node for node in self.nodes if node.kernel is None)

    def by_operator(self) -> tuple[OperatorCoverage, ...]:
        """Returns the counts by operator type, in the order in which the types first appear."""
        counts: dict[str, list[int]] = {}
        for node in self.nodes:
            count = counts.setdefault(node.operator, [0, 0])
            count[0] += node.kernel is not None
            count[1] += 1
        return tuple(
            OperatorCoverage(operator=name, integer=integer, total=total) for name, (integer, total) in counts.items()
        )


def integer_coverage(model: ir.Model) -> Coverage:
    """Opens ``model`` in onnxruntime and finds each of its quantizable nodes in the graph that it would run.

    Quantizable are Conv, Gemm and MatMul, and operators with an integer kernel all of whose inputs are dequantized.

    Raises:
        RuntimeRefusedError: onnxruntime does not load the model.
    """
    with tempfile.TemporaryDirectory() as folder, saved(model, Path(folder)) as path:
        optimized_path = Path(folder) / "optimized.onnx"
        # At a higher level layouts change too, and with them the names by which nodes are found again.
        Session(path, level="extended", optimized_to=optimized_path)
        optimized = ir.load(optimized_path)
        makers = {output.name: node for node in optimized.graph for output in node.outputs if output.name}
        quantizers = [node for node in (*model.graph, *optimized.graph) if node.op_type == "QuantizeLinear"]
        quantized = {node.outputs[0].name for node in quantizers}
        nodes = tuple(_node_coverage(node, makers, quantized) for node in model.graph if _is_quantizable(node))
    return Coverage(nodes=nodes)


def _is_quantizable(node: ir.Node) -> bool:
    operator = OPERATORS.get(node.op_type) if node.domain == "" else None
    if operator is None or operator.kind is Kind.CLAMPING:
        return False
    if operator.kind is Kind.LAYER:
        return True
    positions = range(len(node.inputs)) if operator.data_inputs is None else operator.data_inputs
    data = [node.inputs[index] for index in positions if index < len(node.inputs)]
    makers = [value.producer() for value in data if value is not None]
    if not makers or any(maker is None or maker.op_type != "DequantizeLinear" for maker in makers):
        return False
    return any(maker is not None and not is_constant(maker.inputs[0]) for maker in makers)


def _node_coverage(node: ir.Node, makers: Mapping[str, ir.Node], quantized: set[str | None]) -> NodeCoverage:
    kernel = _kernel(node, makers, quantized)
    return NodeCoverage(
        node=node.name or "",
        operator=node.op_type,
        kernel=kernel,
        reason=None if kernel is not None else reason_for_float(node),
    )


def _kernel(node: ir.Node, makers: Mapping[str, ir.Node], quantized: set[str | None]) -> str | None:
    names = [name for output in node.outputs for name in _names_behind(output)]
    found = [makers[name] for name in names if name is not None and name in makers]
    for maker in found:
        if maker.op_type.startswith(_KERNELS):
            return maker.op_type
        reads_integers = any(value is not None and value.name in quantized for value in maker.inputs)
        gives_integers = all(output.name in quantized for output in maker.outputs)
        if maker.op_type == node.op_type and (reads_integers or gives_integers):
            return f"{maker.op_type} on integers"
    # A node that only renames its values (a Reshape to the same shape) is gone altogether.
    if not found and OPERATORS[node.op_type].kind is Kind.MOVING:
        return "removed"
    return None


def _names_behind(value: ir.Value) -> Iterator[str | None]:
    """Yields the names under which a fused kernel may give out ``value``."""
    yield value.name
    for use in value.uses():
        if use.node.op_type == "QuantizeLinear":
            yield use.node.outputs[0].name
        elif use.node.op_type in _ABSORBED and use.idx == 0:
            yield from _names_behind(use.node.outputs[0])
