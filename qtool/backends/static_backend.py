"""What backends share whose runtimes take nothing but static quantization in QDQ form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from qtool.backends.execution import TARGET_KEY
from qtool.plan import DynamicPlan, WeightOnlyPlan
from qtool.schemes import AnyScheme, DynamicScheme, Scheme
from qtool.weights.blocks.grid import BlockGrid


class StaticBackend:
    """Refuses what is not static, and records the target in each graph; see ``Backend``.

    Attributes:
        name: its key in ``BACKENDS``.
        targets: the presets of its machines.
        has_fused_operators: as in ``Backend``, like those that follow.
    """

    name: str
    targets: Mapping[str, Scheme]
    has_fused_operators: bool = False
    runs_dynamic_layers: bool = False
    runs_weight_only: bool = False

    def place_dynamic(
        self, graph: ir.Graph, scheme: DynamicScheme, reason_to_skip: Callable[[ir.Node], str | None]
    ) -> DynamicPlan:
        """Is not called, since it runs no dynamic layers.

        Raises:
            AssertionError: always.
        """
        raise AssertionError(f"{self.name} runs no dynamic layers")

    def place_weights(
        self, graph: ir.Graph, grid: BlockGrid, reason_to_skip: Callable[[ir.Node], str | None]
    ) -> WeightOnlyPlan:
        """Is not called, since it runs no layers with integer weights alone.

        Raises:
            AssertionError: always.
        """
        raise AssertionError(f"{self.name} runs no layers with integer weights alone")

    def finish(self, model: ir.Model, scheme: AnyScheme) -> None:
        """Records the target in the graph, so that it is not judged in silence on another runtime."""
        model.metadata_props[TARGET_KEY] = scheme.target

    def unfinish(self, model: ir.Model) -> None:
        """Forgets the target."""
        if model.metadata_props.get(TARGET_KEY) in self.targets:
            del model.metadata_props[TARGET_KEY]

    def target_here(self) -> None:
        """No preset is this machine alone."""
