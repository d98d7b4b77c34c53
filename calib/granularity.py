"""Quantization granularity: per tensor or per channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale for each index along ``axis``."""

    axis: int


Granularity: TypeAlias = PerTensor | PerChannel
