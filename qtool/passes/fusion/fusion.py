"""The base class of fusions: replaces several nodes by one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from qtool.graph.rewiring import Attributes
from qtool.passes.fusion.matching import Match, Op, first_match, operators_in
from qtool.passes.optimization.control_flow import graphs_of
from qtool.passes.optimization.operators import ONNXRUNTIME_DOMAIN, Operators, opset_of, use_onnxruntime


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """The operator that replaces a match.

    Attributes:
        op_type: the operator.
        inputs: its inputs.
        attributes: its attributes.
        domain: its domain; empty for the standard.
    """

    op_type: str
    inputs: Sequence[ir.Value | None]
    attributes: Attributes = field(default_factory=dict)
    domain: str = ""


class Fusion(ir.passes.InPlacePass):
    """Searches for patterns, and replaces each match by the result of ``fused``."""

    patterns: ClassVar[tuple[Op, ...]]

    def __init__(self, operators: Operators) -> None:
        """Takes the operators that may be used."""
        super().__init__()
        self.operators = operators
        self.opset = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Visits the nodes once, in order; matches with other readers are not replaced."""
        self.opset = opset_of(model)
        modified = False
        present = {node.op_type for node in model.graph.all_nodes()}
        patterns = [pattern for pattern in self.patterns if operators_in(pattern) <= present]
        ends = {pattern.op_type for pattern in patterns}
        for graph in graphs_of(model):
            for node in [node for node in graph if node.op_type in ends and node.domain == ""]:
                match = first_match(patterns, node) if node.graph is graph else None
                fused = None if match is None else self.fused(match)
                if match is None or fused is None:
                    continue
                _replace(graph, match, fused)
                modified = True
                if fused.domain == ONNXRUNTIME_DOMAIN:
                    use_onnxruntime(model)
        return ir.passes.PassResult(model, modified=modified)

    @abstractmethod
    def fused(self, match: Match) -> Fused | None:
        """Returns the replacement of a match, or None to keep it."""


def _replace(graph: ir.Graph, match: Match, fused: Fused) -> None:
    last = match.nodes[0]
    made = ir.node(fused.op_type, fused.inputs, fused.attributes, domain=fused.domain, name=last.name)
    old, new = last.outputs[0], made.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(last, made)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(match.nodes, safe=True)
