"""Backends whose compiler turns a QDQ graph into kernels on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from qtool.backends.base import Place
from qtool.backends.coverage import Coverage
from qtool.backends.execution import NODE_BY_NODE, TARGET_KEY, Execution
from qtool.plan import Plan
from qtool.schemes import DynamicScheme, Scheme
from qtool.selection import NodeSelection


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilerBackend:
    """Plans by the rules of one compiler, and evaluates with the exact semantics of Q/DQ, see ``Backend``.

    Attributes:
        placement: plans where Q/DQ go.
    """

    name: str
    targets: Mapping[str, Scheme]
    placement: Place
    has_kernels_here: bool = False
    has_fused_operators: bool = False
    runs_dynamic_layers: bool = False
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

    def finish(self, model: ir.Model, scheme: Scheme) -> None:
        """Records the target, so that other commands do not evaluate the graph with this processor's kernels."""
        model.metadata_props[TARGET_KEY] = scheme.target

    def execution(self, scheme: Scheme | DynamicScheme | None) -> Execution:
        """Runs every node by itself, which is the exact semantics of Q/DQ."""
        return NODE_BY_NODE

    def coverage(self, model: ir.Model) -> Coverage | None:
        """Returns None: kernels are chosen on another machine."""
        return None
