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
        role: ``input``, ``output`` or ``itself``, with its purpose.
        scheme: its integers in words; None where it stays float.
        low: the smallest number that the integers hold; None where it stays float.
        high: the largest one; None where it stays float.
        error: the error of its integers; None without samples, and for float tensors.
        sqnr_db: relative to the model without integers; None without samples, for constants, and where nothing was
        lost.
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
        fate: how onnxruntime runs it.
        planned: why `qtool quantize` left it float, according to its manifest; None where it did not.
        time: its run time; None without samples, or where onnxruntime does not time it separately.
    """

    node: str
    operator: str
    fate: NodeFate
    planned: str | None
    time: NodeTime | None
