"""Activation functions, gates and normalizations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from tests.operators.kinds import Bound, Build, Kind, Scheme, computing, floats, near_float, on_features, on_images


class SwiGLU(nn.Module):
    """Is the gated layer of Llama: down(silu(gate(x)) * up(x))."""

    def __init__(self, features: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(features, inner, bias=False), nn.Linear(features, inner, bias=False)
        self.down = nn.Linear(inner, features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return out


def _of_features(name: str, operator: Build, bounds: Mapping[Scheme, Bound], *, after: int = 16) -> Kind:
    return Kind(name=name, build=on_features(operator, after=after), inputs={"x": floats(16)}, bounds=bounds)


def _of_images(name: str, operator: Build, bounds: Mapping[Scheme, Bound]) -> Kind:
    return Kind(name=name, build=on_images(operator, values=512), inputs={"x": floats(3, 8, 8)}, bounds=bounds)


def _trained(norm: nn.Module) -> nn.Module:
    """Gives a normalization weights and moments other than those that it starts with."""
    with torch.no_grad():
        for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name in ("weight", "running_var") else tensor.normal_(0.0, 0.3)
    return norm


ACTIVATIONS = (
    _of_features("Sigmoid", nn.Sigmoid, near_float((49, 0.6), (48, 0.7), (44, 0.8), (41, 0.8))),
    _of_features("Tanh", nn.Tanh, near_float((39, 0.8), (39, 0.9), (39, 0.9), (40, 0.9))),
    _of_features("ReLU", nn.ReLU, near_float((42, 0.7), (41, 0.8), (39, 0.9), (41, 0.8))),
    _of_features("ReLU6", nn.ReLU6, near_float((36, 2.8), (36, 2.6), (35, 2.8), (40, 0.9))),
    _of_features("LeakyReLU", nn.LeakyReLU, near_float((39, 0.9), (40, 0.8), (36, 1.2), (43, 0.7))),
    _of_features("PReLU", nn.PReLU, near_float((38, 1.0), (38, 0.9), (37, 1.0), (40, 0.8))),
    _of_features(
        "PReLU, a slope a channel", lambda: nn.PReLU(16, 0.1), near_float((41, 0.8), (40, 1.0), (38, 1.2), (42, 0.8))
    ),
    _of_features("ELU", nn.ELU, near_float((40, 1.0), (39, 0.9), (38, 0.9), (40, 0.9))),
    _of_features("GLU", nn.GLU, near_float((41, 0.9), (40, 0.9), (40, 1.0), (45, 0.7)), after=8),
    _of_features("SiLU", nn.SiLU, near_float((39, 1.2), (40, 0.9), (37, 1.5), (43, 0.7))),
    _of_features("SwiGLU", lambda: SwiGLU(16, 32), near_float((51, 0.5), (51, 0.6), (51, 0.5), (55, 0.4))),
    _of_features("GELU, exact", nn.GELU, near_float((42, 0.8), (41, 0.9), (38, 1.1), (43, 0.7))),
    _of_features(
        "GELU, with tanh", lambda: nn.GELU(approximate="tanh"), near_float((40, 0.9), (41, 0.8), (36, 1.2), (42, 0.9))
    ),
    _of_features(
        "GELU, with sigmoid",
        computing(lambda x: x * torch.sigmoid(1.702 * x)),
        near_float((36, 1.6), (36, 1.6), (34, 1.7), (39, 0.8)),
    ),
    _of_features("Softmax", lambda: nn.Softmax(-1), near_float((57, 0.4), (57, 0.4), (51, 0.6), (56, 0.4))),
    _of_features("HardSwish", nn.Hardswish, near_float((38, 0.9), (38, 0.9), (37, 1.0), (42, 0.6))),
    _of_images("HardSwish on images", nn.Hardswish, near_float((32, 1.6), (32, 1.5), (30, 2.3), (37, 1.0))),
    _of_images("SiLU on images", nn.SiLU, near_float((32, 1.8), (32, 1.5), (30, 2.5), (36, 1.3))),
    _of_features("HardSigmoid", nn.Hardsigmoid, near_float((47, 0.6), (48, 0.6), (43, 0.8), (40, 1.0))),
)

NORMS = (
    _of_images(
        "BatchNorm2d", lambda: _trained(nn.BatchNorm2d(8)), near_float((34, 1.6), (34, 1.5), (32, 1.6), (35, 1.2))
    ),
    _of_features(
        "LayerNorm", lambda: _trained(nn.LayerNorm(16)), near_float((36, 1.1), (36, 1.2), (36, 1.4), (38, 1.0))
    ),
    _of_images(
        "InstanceNorm2d",
        lambda: _trained(nn.InstanceNorm2d(8, affine=True)),
        near_float((33, 1.6), (33, 1.6), (32, 1.9), (36, 1.2)),
    ),
    _of_images(
        "GroupNorm", lambda: _trained(nn.GroupNorm(4, 8)), near_float((31, 1.6), (32, 1.8), (31, 1.9), (36, 1.0))
    ),
    _of_features("RMSNorm", lambda: _trained(nn.RMSNorm(16)), near_float((37, 1.3), (37, 1.1), (37, 1.1), (37, 1.2))),
)
