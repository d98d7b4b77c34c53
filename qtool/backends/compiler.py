"""Backends whose compiler turns a QDQ graph into kernels on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from qtool.backends.base import Place
from qtool.backends.execution import NODE_BY_NODE, TARGET_KEY, Execution
from qtool.backends.violations import Rule, Violation, check
from qtool.plan import Plan
from qtool.schemes import DynamicScheme, Scheme
from qtool.selection import NodeSelection


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilerBackend:
    """Plans by the rules of one compiler, and evaluates with the exact semantics of Q/DQ, see ``Backend``.

    Attributes:
        placement: plans where Q/DQ go.
        rules: what the compiler takes, by the names of the rules.
    """

    name: str
    targets: Mapping[str, Scheme]
    placement: Place
    rules: Mapping[str, Rule] = field(default_factory=dict)
    has_kernels_here: bool = False
    has_fused_operators: bool = False
    runs_dynamic_layers: bool = False
    stores_tables: bool = False

    def place(
        self,
        graph: ir.Graph,
        scheme: Scheme,
        selection: NodeSelection,
        unfit: Mapping[str, str],
        kept_float: Mapping[str, str],
    ) -> Plan:
        """Plans where Q/DQ go; see ``Backend``."""
        return self.placement(graph, scheme, selection, unfit, kept_float)

    def finish(self, model: ir.Model, scheme: Scheme) -> None:
        """Records the target in the graph, so that other commands do not evaluate it with this processor's kernels."""
        model.metadata_props[TARGET_KEY] = scheme.target

    def violations(self, model: ir.Model) -> tuple[Violation, ...]:
        """Checks the graph by the rules of the compiler."""
        return check(model, self.rules)

    def execution(self, scheme: Scheme | DynamicScheme | None) -> Execution:
        """Runs every node by itself, which is the exact semantics of Q/DQ."""
        return NODE_BY_NODE
