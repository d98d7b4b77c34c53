"""How far the outputs of a quantized model are from those of the float model, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import onnx_ir as ir
import torch

Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_TINY = 1e-12
_PASSED_OVER = ("QuantizeLinear", "DequantizeLinear", "Add", "Identity")


def relative_error(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Returns the power of the error over that of the signal: SQNR in dB is -10 times its decimal logarithm."""
    return (given - wanted).square().mean() / wanted.square().mean().clamp(min=_TINY)


def divergence(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Returns the Kullback-Leibler divergence of logits in nats a row: sum p (log p - log q) over the last axis.

    Source: G. Hinton et al., Distilling the Knowledge in a Neural Network (2015), at temperature 1.
    """
    aimed, found = torch.log_softmax(wanted, -1), torch.log_softmax(given, -1)
    return (aimed.exp() * (aimed - found)).sum(-1).mean()


def cosine_distance(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Returns one minus the cosine between each row of the last axis."""
    return (1.0 - torch.nn.functional.cosine_similarity(given, wanted, dim=-1)).mean()


LOSSES: Mapping[str, Loss] = {"mse": relative_error, "kl": divergence, "cosine": cosine_distance}


def losses_for(original: ir.Model, view: ir.Model, chosen: Loss | None) -> dict[str, Loss]:
    """Returns the loss of every float output of ``view``, the float model with logits as outputs.

    That is the one that is chosen, else the divergence for class scores, and the relative error for everything else.
    Scores are what a Softmax turns into an output of ``original``, and two-dimensional products of several columns.
    """
    pairs = zip(original.graph.outputs, view.graph.outputs, strict=True)
    return {
        seen.name or "": chosen or LOSSES["kl" if _has_classes(own) else "mse"]
        for own, seen in pairs
        if seen.dtype is None or seen.dtype.is_floating_point()
    }


def _has_classes(output: ir.Value) -> bool:
    shape, producer = output.shape, output.producer()
    if shape is None or len(shape) != 2 or not (isinstance(shape[1], int) and shape[1] > 1):
        return False
    if producer is not None and producer.op_type == "Softmax":
        return True
    while producer is not None and producer.op_type in _PASSED_OVER and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type in {"Gemm", "MatMul"}
