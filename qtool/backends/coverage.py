"""Coverage: which nodes of a quantized model a runtime really runs on integers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCoverage:
    """The result for one node that could run on integers.

    Attributes:
        node: its name.
        operator: its type.
        kernel: the integer kernel that runs it; None when it stays float.
        reason: why it stays float; None when it does not.
        fix: what changes that; None when it does not.
    """

    node: str
    operator: str
    kernel: str | None
    reason: str | None
    fix: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCoverage:
    """How many nodes of one operator type could run on integers, and how many do."""

    operator: str
    integer: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How much of a model runs on integers.

    Attributes:
        nodes: every node that could, in graph order.
        runtime: the runtime that was asked, a key of ``RUNTIMES``.
    """

    nodes: tuple[NodeCoverage, ...]
    runtime: str = "onnxruntime"

    @property
    def total(self) -> int:
        """How many nodes could run on integers."""
        return len(self.nodes)

    @property
    def integer(self) -> int:
        """How many do."""
        return sum(node.kernel is not None for node in self.nodes)

    @property
    def share(self) -> float:
        """The share that does, 0 to 1; 0 when there are none."""
        return self.integer / self.total if self.total else 0.0

    @property
    def misses(self) -> tuple[NodeCoverage, ...]:
        """The nodes that stay float, each with its reason."""
        return tuple(node for node in self.nodes if node.kernel is None)

    def by_operator(self) -> tuple[OperatorCoverage, ...]:
        """Returns the counts by operator type, in the order in which the types first appear."""
        counts: dict[str, list[int]] = {}
        for node in self.nodes:
            count = counts.setdefault(node.operator, [0, 0])
            count[0] += node.kernel is not None
            count[1] += 1
        return tuple(
            OperatorCoverage(operator=name, integer=integer, total=total) for name, (integer, total) in counts.items()
        )
