"""Backends whose compiler turns a QDQ graph into kernels on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from qtool.backends.base import Place
from qtool.backends.coverage import Coverage
from qtool.backends.execution import NODE_BY_NODE, Execution
from qtool.backends.node_kernel import NodeKernel
from qtool.backends.static_backend import StaticBackend
from qtool.backends.violations import Rule, Violation, check
from qtool.plan import Plan
from qtool.schemes import AnyScheme, Scheme
from qtool.selection import NodeSelection


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilerBackend(StaticBackend):
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
    stores_tables: bool = False

    @property
    def judged_in(self) -> str:
        """The meaning of the graph."""
        return "the exact semantics of Q and DQ, node by node: this runtime is not here, and was not run"

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

    def runs_here(self, target: str) -> bool:
        """Its machines are others."""
        return False

    def kernels(self, model: ir.Model) -> Mapping[str, NodeKernel] | None:
        """Returns None: kernels are chosen on another machine."""
        return None

    def violations(self, model: ir.Model) -> tuple[Violation, ...]:
        """Checks the graph by the rules of the compiler."""
        return check(model, self.rules)

    def execution(self, scheme: AnyScheme | None) -> Execution:
        """Runs every node by itself, which is the exact semantics of Q/DQ."""
        return NODE_BY_NODE

    def coverage(self, model: ir.Model) -> Coverage | None:
        """Returns None: kernels are chosen on another machine."""
        return None
