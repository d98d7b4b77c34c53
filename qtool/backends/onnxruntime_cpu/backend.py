"""The backend of onnxruntime's CPU provider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from qtool.backends.execution import AS_IT_IS, Execution
from qtool.backends.onnxruntime_cpu.exact_sums import exact_form
from qtool.backends.onnxruntime_cpu.placement import place
from qtool.backends.onnxruntime_cpu.residual_sums import ResidualSums
from qtool.backends.onnxruntime_cpu.targets import TARGETS
from qtool.backends.violations import Violation
from qtool.plan import Plan
from qtool.schemes import DynamicScheme, Scheme
from qtool.selection import NodeSelection


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxruntimeCpu:
    """onnxruntime's CPU provider, whose kernels are in this process; see ``Backend``."""

    name: str = "onnxruntime-cpu"
    has_kernels_here: bool = True
    has_fused_operators: bool = True
    runs_dynamic_layers: bool = True
    stores_tables: bool = True

    @property
    def targets(self) -> Mapping[str, Scheme]:
        """CPUs by their integer instructions."""
        return TARGETS

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

    def finish(self, model: ir.Model, scheme: Scheme) -> None:
        """Keeps residual additions separate from the normalization that follows."""
        ResidualSums()(model)

    def violations(self, model: ir.Model) -> tuple[Violation, ...]:
        """Returns none: its kernels are asked themselves."""
        return ()

    def execution(self, scheme: Scheme | DynamicScheme | None) -> Execution:
        """Runs the provider's own kernels, in a form without overflow where only this machine's sums saturate."""
        return AS_IT_IS if scheme is None else Execution(form=exact_form(scheme))


BACKEND = OnnxruntimeCpu()
