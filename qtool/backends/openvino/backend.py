"""The backend OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from qtool.backends.coverage import Coverage
from qtool.backends.execution import NODE_BY_NODE, Execution
from qtool.backends.node_kernel import NodeKernel
from qtool.backends.openvino.coverage import openvino_coverage
from qtool.backends.openvino.execution import IN_OPENVINO
from qtool.backends.openvino.installed import INSTALL, installed_version, is_installed
from qtool.backends.openvino.integer_sums import sums_saturate
from qtool.backends.openvino.node_kernels import kernels_of
from qtool.backends.openvino.placement import place
from qtool.backends.openvino.targets import TARGETS
from qtool.backends.static_backend import StaticBackend
from qtool.backends.violations import Violation
from qtool.plan import Plan
from qtool.schemes import AnyScheme, Scheme, WeightOnlyScheme
from qtool.selection import NodeSelection


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenvinoBackend(StaticBackend):
    """OpenVINO's CPU plugin, where it is installed; see ``Backend``."""

    targets: Mapping[str, Scheme]
    name: str = "openvino"
    stores_tables: bool = True

    @property
    def judged_in(self) -> str:
        """OpenVINO, or the meaning of the graph."""
        if is_installed():
            if sums_saturate():
                return (
                    f"OpenVINO {installed_version()} for --target openvino-avx2; else the exact semantics of Q and DQ, "
                    "node by node, since its sums have 16 bits here"
                )
            return f"OpenVINO {installed_version()}"
        return f"the exact semantics of Q and DQ, node by node: OpenVINO is not installed here ({INSTALL})"

    @property
    def has_kernels_here(self) -> bool:
        """Whether it is installed."""
        return is_installed()

    def place(
        self,
        graph: ir.Graph,
        scheme: Scheme,
        selection: NodeSelection,
        unfit: Mapping[str, str],
        kept_float: Mapping[str, str],
    ) -> Plan:
        """Plans where Q/DQ go; see ``Backend``."""
        return place(graph, scheme, selection, unfit, kept_float)

    def runs_here(self, target: str) -> bool:
        """Returns whether it is installed."""
        return is_installed()

    def kernels(self, model: ir.Model) -> Mapping[str, NodeKernel] | None:
        """Reads what runs each node from the graph that OpenVINO executes."""
        return kernels_of(model) if is_installed() else None

    def violations(self, model: ir.Model) -> tuple[Violation, ...]:
        """Returns none: where it is installed it is asked itself."""
        return ()

    def execution(self, scheme: AnyScheme | None) -> Execution:
        """Runs graphs in OpenVINO where it computes here what it does on the target machine; else node by node."""
        if scheme is None or isinstance(scheme, WeightOnlyScheme):
            return NODE_BY_NODE
        return IN_OPENVINO if _is_exact(scheme.largest_pair) else NODE_BY_NODE

    def coverage(self, model: ir.Model) -> Coverage | None:
        """Reads which nodes run on integers from the graph that OpenVINO executes."""
        return openvino_coverage(model) if is_installed() else None


def _is_exact(largest_pair: int | None) -> bool:
    """Returns whether OpenVINO is here, and its sums on this processor hold the products."""
    return is_installed() and (largest_pair is not None or not sums_saturate())


BACKEND = OpenvinoBackend(targets=TARGETS)
