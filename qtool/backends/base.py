"""The protocol of a backend: one runtime and its targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import onnx_ir as ir

from qtool.backends.execution import Execution
from qtool.backends.violations import Violation
from qtool.plan import Plan
from qtool.schemes import DynamicScheme, Scheme
from qtool.selection import NodeSelection

Place: TypeAlias = Callable[[ir.Graph, Scheme, NodeSelection, Mapping[str, str], Mapping[str, str]], Plan]


class Backend(Protocol):
    """One runtime.

    Attributes:
        name: its key in ``BACKENDS``.
        targets: the presets of its machines, by their ``--target`` names.
        has_kernels_here: whether its kernels run in this process, so that integer nodes can be counted and advised on.
        has_fused_operators: whether it supports the operators of onnxruntime's domain ``com.microsoft``.
        runs_dynamic_layers: whether it supports dynamic quantization of layers.
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
    def has_fused_operators(self) -> bool:
        """Whether it supports the operators of onnxruntime's domain ``com.microsoft``."""
        ...

    @property
    def runs_dynamic_layers(self) -> bool:
        """Whether it supports dynamic quantization of layers."""
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

    def finish(self, model: ir.Model, scheme: Scheme) -> None:
        """Adapts a graph with Q/DQ to the runtime, in place."""
        ...

    def violations(self, model: ir.Model) -> tuple[Violation, ...]:
        """Returns what the runtime does not take of a quantized graph, by its published rules; see ``violations``.

        Empty where the graph keeps to all of them, or qtool knows none, since it can ask the runtime itself.
        """
        ...

    def execution(self, scheme: Scheme | DynamicScheme | None) -> Execution:
        """Returns how to run its graphs on this machine with the results of the target machine.

        Without a scheme, for a graph of which only the target is known.

        Raises:
            RuntimeRefusedError: onnxruntime does not run at all.
        """
        ...
