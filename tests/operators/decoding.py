"""A decoder layer that keeps keys and values of the steps before, as inputs and outputs of its graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.operators.activations_and_norms import SwiGLU
from tests.operators.kinds import Array, Kind, Run, floats, near_float
from tests.operators.sequences import FEATURES, HEADS, rotated

KEY_HEADS, WIDTH, STEPS = 2, FEATURES // HEADS, 12


class CachedDecoder(nn.Module):
    """Is a layer of Llama's kind that attends to the steps of a cache and to its own."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(FEATURES, FEATURES)
        self.key, self.value = (nn.Linear(FEATURES, KEY_HEADS * WIDTH) for _ in range(2))
        self.output = nn.Linear(FEATURES, FEATURES)
        self.norms = nn.ModuleList([nn.RMSNorm(FEATURES), nn.RMSNorm(FEATURES)])
        self.inner = SwiGLU(FEATURES, 32)

    def forward(self, x: torch.Tensor, past_key: torch.Tensor, past_value: torch.Tensor) -> dict[str, torch.Tensor]:
        start, steps = past_key.shape[2], x.shape[1]
        normed = self.norms[0](x)
        query, key, value = (
            part(normed).unflatten(-1, (-1, WIDTH)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        query, key = rotated(query, start, interleaved=False), rotated(key, start, interleaved=False)
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        seen = torch.arange(start + steps) <= torch.arange(start, start + steps)[:, None]
        attended = functional.scaled_dot_product_attention(
            query, *(part.repeat_interleave(HEADS // KEY_HEADS, 1) for part in (key, value)), attn_mask=seen
        )
        x = x + self.output(attended.transpose(1, 2).flatten(2))
        return {"y": x + self.inner(self.norms[1](x)), "key": key, "value": value}


@dataclass(frozen=True, kw_only=True)
class Decoding(Kind):
    """Runs step by step from an empty cache, and expects what the whole sequence gives at once."""

    def shapes(self) -> Mapping[str, tuple[int | str, ...]]:
        cache = ("batch", KEY_HEADS, "past", WIDTH)
        return {"x": ("batch", "steps", FEATURES), "past_key": cache, "past_value": cache}

    def calibration(self) -> list[dict[str, Array]]:
        """Makes what the decoder is fed in use: two steps at a time, and what it kept of those before."""
        x, pieces = self._samples("calibration", 64)["x"], []
        with torch.no_grad():
            whole = self.module()(*(torch.from_numpy(part) for part in (x, *empty_cache(len(x)))))
        for start in range(0, STEPS, 2):
            key, value = (whole[name][:, :, :start].numpy() for name in ("key", "value"))
            pieces.append({"x": x[:, start : start + 2], "past_key": key, "past_value": value})
        return pieces

    def expected(self, module: nn.Module) -> Array:
        x = self._judged()["x"]
        with torch.no_grad():
            out: torch.Tensor = module(*(torch.from_numpy(part) for part in (x, *empty_cache(len(x)))))["y"]
        return out.numpy()

    def got(self, run: Run) -> Array:
        return step_by_step(run, self._judged()["x"])


def empty_cache(samples: int) -> tuple[Array, Array]:
    """Returns keys and values of no steps."""
    key, value = (np.zeros((samples, KEY_HEADS, 0, WIDTH), np.float32) for _ in range(2))
    return key, value


def step_by_step(run: Run, x: Array) -> Array:
    """Feeds one step at a time, and what the graph kept of those before."""
    key, value = empty_cache(len(x))
    outputs = []
    for step in range(x.shape[1]):
        out = run({"x": x[:, step : step + 1], "past_key": key, "past_value": value})
        key, value = out["key"], out["value"]
        outputs.append(out["y"])
    return np.concatenate(outputs, 1)


DECODER = Decoding(
    name="Decoder layer with KV cache",
    build=CachedDecoder,
    inputs={"x": floats(STEPS, FEATURES)},
    bounds=near_float((39, 1.7), (39, 1.5), (38, 1.7), (44, 0.7)),
)
