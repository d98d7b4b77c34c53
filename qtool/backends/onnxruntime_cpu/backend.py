"""The backend of onnxruntime's CPU provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from qtool.backends.coverage import Coverage
from qtool.backends.execution import AS_IT_IS, TARGET_KEY, Execution, OnnxruntimeExecution
from qtool.backends.node_kernel import NodeKernel
from qtool.backends.onnxruntime_cpu.coverage import integer_coverage
from qtool.backends.onnxruntime_cpu.dynamic_placement import place_dynamic
from qtool.backends.onnxruntime_cpu.exact_sums import exact_form
from qtool.backends.onnxruntime_cpu.keep_float import KeepFloatLayers, without_separators
from qtool.backends.onnxruntime_cpu.node_kernels import kernels_of
from qtool.backends.onnxruntime_cpu.placement import place
from qtool.backends.onnxruntime_cpu.residual_sums import ResidualSums, without_residual_sums
from qtool.backends.onnxruntime_cpu.targets import TARGETS
from qtool.backends.onnxruntime_cpu.this_machine import runs_here, target_here
from qtool.backends.onnxruntime_cpu.weight_only_placement import place_weights
from qtool.backends.violations import Violation
from qtool.plan import DynamicPlan, Plan, WeightOnlyPlan
from qtool.schemes import AnyScheme, DynamicScheme, Scheme, WeightOnlyScheme
from qtool.selection import NodeSelection
from qtool.weights.blocks.grid import BlockGrid


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxruntimeCpu:
    """onnxruntime's CPU provider, whose kernels are in this process; see ``Backend``."""

    name: str = "onnxruntime-cpu"
    has_kernels_here: bool = True
    has_fused_operators: bool = True
    runs_dynamic_layers: bool = True
    runs_weight_only: bool = True
    stores_tables: bool = True

    @property
    def judged_in(self) -> str:
        """Its own kernels."""
        return "onnxruntime"

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

    def place_dynamic(
        self, graph: ir.Graph, scheme: DynamicScheme, reason_to_skip: Callable[[ir.Node], str | None]
    ) -> DynamicPlan:
        """Plans the layers that quantize their activations as they run; see ``Backend``."""
        return place_dynamic(graph, scheme, reason_to_skip)

    def place_weights(
        self, graph: ir.Graph, grid: BlockGrid, reason_to_skip: Callable[[ir.Node], str | None]
    ) -> WeightOnlyPlan:
        """Plans the layers whose weights alone become integers; see ``Backend``."""
        return place_weights(graph, grid, reason_to_skip)

    def finish(self, model: ir.Model, scheme: AnyScheme) -> None:
        """Keeps float layers float and residual additions separate, and records the target."""
        KeepFloatLayers()(model)
        ResidualSums()(model)
        model.metadata_props[TARGET_KEY] = scheme.target

    def unfinish(self, model: ir.Model) -> None:
        """Removes the nodes that keep layers float, makes additions of residual sums again, and forgets the target."""
        without_separators(model)
        without_residual_sums(model)
        if model.metadata_props.get(TARGET_KEY) in self.targets:
            del model.metadata_props[TARGET_KEY]

    def target_here(self) -> str:
        """Returns the preset by the processor's family and by what its sums do."""
        return target_here()

    def runs_here(self, target: str) -> bool:
        """Returns whether the preset is this machine, or the fleet that it belongs to."""
        return runs_here(target)

    def kernels(self, model: ir.Model) -> Mapping[str, NodeKernel] | None:
        """Reads what runs each node from the provider's optimized graph."""
        return kernels_of(model)

    def violations(self, model: ir.Model) -> tuple[Violation, ...]:
        """Returns none: its kernels are asked themselves."""
        return ()

    def execution(self, scheme: AnyScheme | None) -> Execution:
        """Runs the provider's own kernels, in a form without overflow where only this machine's sums saturate."""
        if scheme is None or isinstance(scheme, WeightOnlyScheme):
            return AS_IT_IS
        return OnnxruntimeExecution(form=exact_form(scheme))

    def coverage(self, model: ir.Model) -> Coverage | None:
        """Reads which nodes run on integers from the provider's optimized graph."""
        return integer_coverage(model)


BACKEND = OnnxruntimeCpu()
