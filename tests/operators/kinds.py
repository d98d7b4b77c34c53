"""What one row of the table of operators is made of: a module, what it is fed, and how near to float it has to stay."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Array: TypeAlias = npt.NDArray[Any]
Sampler: TypeAlias = Callable[[np.random.Generator, int], Array]
Build: TypeAlias = Callable[[], nn.Module]
Run: TypeAlias = Callable[[dict[str, Array]], dict[str, Array]]

# So many samples that others of their kind seldom lie outside of the ranges.
_CALIBRATION_SAMPLES, _JUDGED_SAMPLES = 256, 32


class Scheme(StrEnum):
    """The ways of quantizing that every kind goes through, in the order of the table's columns."""

    CHANNEL = "per channel"
    TENSOR = "per tensor"
    SYMMETRIC = "symmetric"
    DYNAMIC = "dynamic"


@dataclass(frozen=True, slots=True)
class Bound:
    """Says how near to float an output has to stay.

    Attributes:
        least_db: the least signal over noise, in dB.
        largest_error: the largest difference, as a share of the range of the float output.
    """

    least_db: float
    largest_error: float


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of operator in the smallest network that it is used in.

    Attributes:
        name: what people call it.
        build: makes the module.
        inputs: by parameter of its forward, what makes so many samples.
        bounds: by scheme; without one for dynamic, nothing in it can be quantized so.
    """

    name: str
    build: Build
    inputs: Mapping[str, Sampler]
    bounds: Mapping[Scheme, Bound]

    def module(self) -> nn.Module:
        """Makes the module, with the same weights every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()))
            return self.build().eval()

    def shapes(self) -> Mapping[str, tuple[int | str, ...]] | None:
        """Names the free dimensions of the inputs; None where only the number of samples is free."""
        return None

    def calibration(self) -> list[dict[str, Array]]:
        """Makes the samples that ranges come from, one a row, in as many pieces as there are shapes."""
        return [self._samples("calibration", _CALIBRATION_SAMPLES)]

    def expected(self, module: nn.Module) -> Array:
        """Returns what torch computes in float, for data that ranges do not come from."""
        with torch.no_grad():
            out: torch.Tensor = module(**{name: torch.from_numpy(array) for name, array in self._judged().items()})
        return out.numpy()

    def got(self, run: Run) -> Array:
        """Returns what a graph computes for the same data."""
        (out,) = run(self._judged()).values()
        return out

    def _judged(self) -> dict[str, Array]:
        return self._samples("evaluation", _JUDGED_SAMPLES)

    def _samples(self, purpose: str, count: int) -> dict[str, Array]:
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), zlib.crc32(purpose.encode())])
        return {name: sampler(rng, count) for name, sampler in self.inputs.items()}


def near_float(
    channel: tuple[float, float],
    tensor: tuple[float, float],
    symmetric: tuple[float, float],
    dynamic: tuple[float, float] | None,
) -> dict[Scheme, Bound]:
    """Returns bounds from the least dB and the largest error in percent of the range, scheme by scheme."""
    given = zip(Scheme, (channel, tensor, symmetric, dynamic), strict=True)
    return {scheme: Bound(pair[0], pair[1] / 100) for scheme, pair in given if pair is not None}


def floats(*shape: int) -> Sampler:
    """Draws float32 values between -1 and 1, without rare ones that would lie outside of every range."""
    return lambda rng, count: rng.uniform(-1.0, 1.0, (count, *shape)).astype(np.float32)


def integers(below: int, *shape: int) -> Sampler:
    """Draws int64 values from zero on."""
    return lambda rng, count: rng.integers(0, below, (count, *shape))


def flags(*shape: int) -> Sampler:
    """Draws booleans."""
    return lambda rng, count: rng.random((count, *shape)) < 0.6


class Between(nn.Module):
    """Runs an operator between two layers, as it is met in a network."""

    def __init__(self, before: nn.Module, operator: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.operator, self.after = before, operator, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.after(self.operator(self.before(x)))
        return out


class Compute(nn.Module):
    """Makes a module of a function without weights."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.function(*tensors)


def computing(function: Callable[..., torch.Tensor]) -> Build:
    """Makes modules of a function without weights."""
    return lambda: Compute(function)


def on_features(operator: Build, *, after: int = 16) -> Build:
    """Runs an operator on 16 features, between two linear layers."""
    return lambda: Between(nn.Linear(16, 16), operator(), nn.Linear(after, 8))


def on_images(operator: Build, *, values: int) -> Build:
    """Runs an operator on 8 channels of 8x8, between a convolution and a linear layer that reads so many values."""
    return lambda: Between(nn.Conv2d(3, 8, 3, padding=1), operator(), nn.Sequential(nn.Flatten(), nn.Linear(values, 8)))
