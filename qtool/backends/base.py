"""What a backend is: one runtime, the targets that it computes on, and all that depends on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import onnx_ir as ir

from qtool.backends.execution import Execution
from qtool.plan import Plan
from qtool.schemes import DynamicScheme, Scheme
from qtool.selection import NodeSelection

Place: TypeAlias = Callable[[ir.Graph, Scheme, NodeSelection, Mapping[str, str], Mapping[str, str]], Plan]


class Backend(Protocol):
    """One runtime.

    Attributes:
        name: its key in ``BACKENDS``.
        targets: the presets of its machines, by what ``--target`` takes.
        has_kernels_here: whether the kernels that it computes with are in this process, to be counted and advised on.
        has_fused_operators: whether it takes the operators of onnxruntime's domain ``com.microsoft``.
        runs_dynamic_layers: whether layers may quantize their activations as they run.
        stores_tables: whether embedding tables may be stored as integers.
    """

    @property
    def name(self) -> str:
        """Its key in ``BACKENDS``."""
        ...

    @property
    def targets(self) -> Mapping[str, Scheme]:
        """The presets of its machines, by what ``--target`` takes."""
        ...

    @property
    def has_kernels_here(self) -> bool:
        """Whether the kernels that it computes with are in this process, to be counted and advised on."""
        ...

    @property
    def has_fused_operators(self) -> bool:
        """Whether it takes the operators of onnxruntime's domain ``com.microsoft``."""
        ...

    @property
    def runs_dynamic_layers(self) -> bool:
        """Whether layers may quantize their activations as they run."""
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
            graph: as ``prepare`` leaves it.
            scheme: which integers tensors become.
            selection: which nodes may be quantized.
            unfit: tensors that data has shown to be unfit for integers, each with the reason.
            kept_float: nodes that stay float, each with the reason.
        """
        ...

    def finish(self, model: ir.Model, scheme: Scheme) -> None:
        """Changes a graph with Q/DQ as the runtime wants it, in place."""
        ...

    def execution(self, scheme: Scheme | DynamicScheme | None) -> Execution:
        """Returns how its graphs are run here so that what comes out is what they mean where they are to run.

        Without a scheme, as a graph runs that only names its target.

        Raises:
            RuntimeRefusedError: onnxruntime does not run at all.
        """
        ...
