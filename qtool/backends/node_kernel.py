"""Which kernel of a runtime runs a node, and in which precision."""

from __future__ import annotations

from dataclasses import dataclass

INTEGERS = "integers"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKernel:
    """How one node runs.

    Attributes:
        kernel: the kernel; None where the node is fused into another one, or removed.
        precision: ``integers``, or the type of what it computes; None where there is no kernel.
        device: where it runs.
    """

    kernel: str | None
    precision: str | None
    device: str = "CPU"
