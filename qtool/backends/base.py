"""The protocol of a backend: one runtime and its targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import onnx_ir as ir

from qtool.backends.coverage import Coverage
from qtool.backends.execution import Execution
from qtool.backends.node_kernel import NodeKernel
from qtool.backends.violations import Violation
from qtool.plan import DynamicPlan, Plan, WeightOnlyPlan
from qtool.schemes import AnyScheme, DynamicScheme, Scheme
from qtool.selection import NodeSelection
from qtool.weights.blocks.grid import BlockGrid

Place: TypeAlias = Callable[[ir.Graph, Scheme, NodeSelection, Mapping[str, str], Mapping[str, str]], Plan]


class Backend(Protocol):
    """One runtime.

    Attributes:
        name: its key in ``BACKENDS``.
        targets: the presets of its machines, by their ``--target`` names.
        has_kernels_here: whether its kernels run in this process, so that integer nodes can be counted and advised on.
        judged_in: what results for its targets are judged by on this machine, in words.
        has_fused_operators: whether it supports the operators of onnxruntime's domain ``com.microsoft``.
        runs_dynamic_layers: whether it supports dynamic quantization of layers.
        runs_weight_only: whether it supports layers whose weights alone are integers.
        stores_tables: whether embedding tables may be stored as integers.
    """

    @property
    def name(self) -> str:
        """Its key in ``BACKENDS``."""
        ...

    @property
    def targets(self) -> Mapping[str, Scheme]:
        """The presets of its machines, by their ``--target`` names."""
        ...

    @property
    def has_kernels_here(self) -> bool:
        """Whether its kernels run in this process, so that integer nodes can be counted and advised on."""
        ...

    @property
    def judged_in(self) -> str:
        """What results for its targets are judged by on this machine, in words."""
        ...

    @property
    def has_fused_operators(self) -> bool:
        """Whether it supports the operators of onnxruntime's domain ``com.microsoft``."""
        ...

    @property
    def runs_dynamic_layers(self) -> bool:
        """Whether it supports dynamic quantization of layers."""
        ...

    @property
    def runs_weight_only(self) -> bool:
        """Whether it supports layers whose weights alone are integers."""
        ...

    @property
    def stores_tables(self) -> bool:
        """Whether embedding tables may be stored as integers."""
        ...

    def place(
        self,
        graph: ir.Graph,
        scheme: Scheme,
        selection: NodeSelection,
        unfit: Mapping[str, str],
        kept_float: Mapping[str, str],
    ) -> Plan:
        """Plans where Q/DQ go in a prepared graph.

        Args:
            graph: the graph after ``prepare``.
            scheme: which integers tensors become.
            selection: which nodes may be quantized.
            unfit: tensors found unfit for integers by calibration, each with the reason.
            kept_float: nodes that stay float, each with the reason.
        """
        ...

    def place_dynamic(
        self, graph: ir.Graph, scheme: DynamicScheme, reason_to_skip: Callable[[ir.Node], str | None]
    ) -> DynamicPlan:
        """Plans the layers that quantize their activations as they run; called only where ``runs_dynamic_layers``.

        Args:
            graph: the graph after ``prepare``.
            scheme: which integers weights become.
            reason_to_skip: returns why a layer is excluded, or None when it is not.
        """
        ...

    def place_weights(
        self, graph: ir.Graph, grid: BlockGrid, reason_to_skip: Callable[[ir.Node], str | None]
    ) -> WeightOnlyPlan:
        """Plans the layers whose weights alone become integers; called only where ``runs_weight_only``.

        Args:
            graph: the graph after ``prepare``.
            grid: which integers weights become.
            reason_to_skip: returns why a layer is excluded, or None when it is not.
        """
        ...

    def finish(self, model: ir.Model, scheme: AnyScheme) -> None:
        """Adapts a quantized graph to the runtime, in place, and records the target in it under ``TARGET_KEY``."""
        ...

    def unfinish(self, model: ir.Model) -> None:
        """Undoes what ``finish`` did to a graph, in place; other graphs are left as they are."""
        ...

    def target_here(self) -> str | None:
        """Returns the preset that is this machine, for ``--target auto``; None where no preset is one machine.

        Raises:
            RuntimeRefusedError: the runtime does not run at all.
        """
        ...

    def runs_here(self, target: str) -> bool:
        """Returns whether this is a machine that a preset is for, so that what is measured here applies to it.

        Raises:
            RuntimeRefusedError: the runtime does not run at all.
        """
        ...

    def kernels(self, model: ir.Model) -> Mapping[str, NodeKernel] | None:
        """Returns what runs each node of the main graph of ``model``, by name; None where it cannot run here.

        Raises:
            RuntimeRefusedError: the runtime does not load it.
        """
        ...

    def violations(self, model: ir.Model) -> tuple[Violation, ...]:
        """Returns what the runtime does not take of a quantized graph, by its published rules; see ``violations``.

        Empty where the graph keeps to all of them, or qtool knows none, since it can ask the runtime itself.
        """
        ...

    def execution(self, scheme: AnyScheme | None) -> Execution:
        """Returns how to run its graphs on this machine with the results of the target machine.

        Without a scheme, for a graph of which only the target is known.

        Raises:
            RuntimeRefusedError: onnxruntime does not run at all.
        """
        ...

    def coverage(self, model: ir.Model) -> Coverage | None:
        """Opens a quantized ``model`` in the runtime and returns which of its nodes run on integers.

        Nodes without a name get one. None where the runtime is not here.

        Raises:
            RuntimeRefusedError: the runtime does not load the model.
        """
        ...
