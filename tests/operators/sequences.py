"""Recurrent layers, positions and attention in all its forms."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from tests.operators.kinds import Bound, Build, Kind, Scheme, floats, integers, near_float

FEATURES, HEADS, STEPS = 16, 4, 6


class Recurrent(nn.Module):
    """Reads a sequence, and judges it by every step."""

    def __init__(self, layer: type[nn.RNNBase], *, bidirectional: bool = False) -> None:
        super().__init__()
        self.before = nn.Linear(16, 16)
        self.layer = layer(16, 8, batch_first=True, bidirectional=bidirectional)
        self.after = nn.Linear(16 if bidirectional else 8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.after(self.layer(self.before(x))[0])
        return out


class Positions(nn.Module):
    """Adds learned or sinusoidal positions to embedded tokens."""

    def __init__(self, *, learned: bool) -> None:
        super().__init__()
        self.tokens, self.after = nn.Embedding(20, FEATURES), nn.Linear(FEATURES, 8)
        self.learned = nn.Embedding(32, FEATURES) if learned else None
        # Vaswani et al., Attention Is All You Need (https://arxiv.org/abs/1706.03762), section 3.5.
        angles = torch.arange(32)[:, None] / 10000 ** (torch.arange(0, FEATURES, 2) / FEATURES)
        self.register_buffer("waves", torch.stack([angles.sin(), angles.cos()], -1).flatten(1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        steps = ids.shape[1]
        waves: torch.Tensor = self.get_buffer("waves")[:steps]
        places = waves if self.learned is None else self.learned(torch.arange(steps))
        out: torch.Tensor = self.after(self.tokens(ids) + places)
        return out


def rotated(x: torch.Tensor, start: int | torch.Tensor = 0, *, interleaved: bool) -> torch.Tensor:
    """Turns pairs of features by angles that grow with the position, from ``start`` on.

    Source: Su et al., RoFormer (https://arxiv.org/abs/2104.09864), section 3.2.2. Pairs are neighbours where
    ``interleaved``, and features half of the width apart otherwise.
    """
    steps, width = x.shape[-2:]
    speeds = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = (torch.arange(steps) + start)[:, None] * speeds
    cos, sin = angles.cos(), angles.sin()
    if interleaved:
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Attention(nn.Module):
    """Attends with as many heads for keys and values as wanted, rotated, causal or neither."""

    def __init__(
        self,
        *,
        key_heads: int = HEADS,
        causal: bool = False,
        rotary: str | None = None,
        written_out: bool = False,
    ) -> None:
        super().__init__()
        self.width = FEATURES // HEADS
        self.key_heads, self.causal, self.rotary, self.written_out = key_heads, causal, rotary, written_out
        self.query = nn.Linear(FEATURES, FEATURES)
        self.key, self.value = (nn.Linear(FEATURES, key_heads * self.width) for _ in range(2))
        self.output = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self._heads(self.query(x), HEADS)
        key, value = self._heads(self.key(x), self.key_heads), self._heads(self.value(x), self.key_heads)
        if self.rotary is not None:
            query, key = (rotated(part, interleaved=self.rotary == "interleaved") for part in (query, key))
        if self.written_out:
            scores = query @ key.transpose(-1, -2) / math.sqrt(self.width)
            attended = scores.softmax(-1) @ value
        else:
            attended = functional.scaled_dot_product_attention(
                query, key, value, is_causal=self.causal, enable_gqa=self.key_heads != HEADS
            )
        out: torch.Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return x.unflatten(-1, (count, self.width)).transpose(1, 2)


class CrossAttention(nn.Module):
    """Lets one sequence attend to another."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(FEATURES, HEADS, batch_first=True)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attention(x, memory, memory, need_weights=False)[0]
        return out


class SelfAttention(nn.Module):
    """Is torch's own multi-head attention of a sequence to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(FEATURES, HEADS, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


def _of_steps(name: str, build: Build, bounds: Mapping[Scheme, Bound]) -> Kind:
    return Kind(name=name, build=build, inputs={"x": floats(STEPS, FEATURES)}, bounds=bounds)


RECURRENT = (
    _of_steps("RNN", lambda: Recurrent(nn.RNN), near_float((42, 1.8), (42, 1.5), (43, 1.0), (43, 1.0))),
    _of_steps("LSTM", lambda: Recurrent(nn.LSTM), near_float((48, 0.6), (48, 0.6), (48, 0.7), (48, 0.6))),
    _of_steps(
        "LSTM, bidirectional",
        lambda: Recurrent(nn.LSTM, bidirectional=True),
        near_float((46, 0.7), (46, 0.7), (45, 1.0), (45, 0.7)),
    ),
    _of_steps("GRU", lambda: Recurrent(nn.GRU), near_float((43, 1.0), (43, 0.9), (42, 1.0), (43, 0.9))),
    _of_steps(
        "GRU, bidirectional",
        lambda: Recurrent(nn.GRU, bidirectional=True),
        near_float((40, 0.9), (40, 1.0), (40, 1.1), (41, 0.9)),
    ),
)

POSITIONS = (
    Kind(
        name="Positions, sinusoidal",
        build=lambda: Positions(learned=False),
        inputs={"ids": integers(20, STEPS)},
        bounds=near_float((38, 1.0), (38, 0.9), (36, 1.2), (38, 1.0)),
    ),
    Kind(
        name="Positions, learned",
        build=lambda: Positions(learned=True),
        inputs={"ids": integers(20, STEPS)},
        bounds=near_float((37, 0.9), (37, 0.9), (37, 1.0), (37, 0.9)),
    ),
    _of_steps(
        "RoPE, half-rotated", lambda: Attention(rotary="half"), near_float((38, 1.3), (37, 1.1), (37, 1.2), (39, 0.9))
    ),
    _of_steps(
        "RoPE, interleaved",
        lambda: Attention(rotary="interleaved"),
        near_float((41, 1.1), (41, 1.2), (40, 1.1), (43, 0.7)),
    ),
)

ATTENTION = (
    _of_steps(
        "Attention, written out",
        lambda: Attention(written_out=True),
        near_float((41, 0.9), (41, 1.0), (40, 0.9), (42, 0.8)),
    ),
    _of_steps("Attention, scaled dot-product", Attention, near_float((38, 1.2), (38, 1.2), (38, 1.4), (42, 1.0))),
    _of_steps("Attention, multi-head", SelfAttention, near_float((33, 1.5), (33, 1.6), (33, 1.6), (37, 1.2))),
    Kind(
        name="Attention, cross",
        build=CrossAttention,
        inputs={"x": floats(STEPS, FEATURES), "memory": floats(5, FEATURES)},
        bounds=near_float((33, 1.4), (33, 1.4), (32, 1.7), (38, 0.9)),
    ),
    _of_steps(
        "Attention, causal", lambda: Attention(causal=True), near_float((36, 1.3), (36, 1.1), (35, 1.2), (38, 0.8))
    ),
    _of_steps(
        "Attention, multi-query", lambda: Attention(key_heads=1), near_float((34, 2.9), (34, 3.0), (33, 3.0), (42, 0.7))
    ),
    _of_steps(
        "Attention, grouped-query",
        lambda: Attention(key_heads=2),
        near_float((38, 1.1), (38, 1.1), (38, 1.3), (42, 0.8)),
    ),
)
