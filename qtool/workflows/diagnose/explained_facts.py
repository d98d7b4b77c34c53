"""Facts about one node or tensor of a quantized model."""

from __future__ import annotations

from dataclasses import dataclass

from qtool.backends.onnxruntime_cpu.node_fate import NodeFate
from qtool.metrics.tensor_error import TensorError
from qtool.workflows.diagnose.measured_tensors import NodeTime


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFacts:
    """The facts about one tensor.

    Attributes:
        tensor: its name in the float model.
        role: ``input``, ``output`` or ``itself``, as the user asked, with what it is there for.
        scheme: its integers in words; None where it stays float.
        low: the smallest number that the integers hold; None where it stays float.
        high: the largest likewise.
        error: what its integers cost; None without samples, and for what stays float.
        sqnr_db: of what is computed, against the model without integers; None without samples, for constants, and
            where nothing was lost.
    """

    tensor: str
    role: str
    scheme: str | None
    low: float | None
    high: float | None
    error: TensorError | None
    sqnr_db: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """The facts about one node.

    Attributes:
        node: its name.
        operator: its type.
        fate: what onnxruntime turned it into.
        planned: why `qtool quantize` left it float, as its manifest says; None where it did not.
        time: how long it runs; None without samples, or where onnxruntime does not time it by itself.
    """

    node: str
    operator: str
    fate: NodeFate
    planned: str | None
    time: NodeTime | None
