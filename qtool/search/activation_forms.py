"""Chooses which layers quantize their activations with one scale at a run, in blocks of a row, or not at all.

One scale for all values of a tensor has the fastest kernels, and loses what is small beside its largest value: the
outliers that a few tokens and channels of transformers have. Scales of their own for blocks of each row keep it, at
the cost of some speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from qtool.calib.specs import Array
from qtool.search.float_fallback import weighted_db

# Inputs of a layer that share a scale in a row.
BLOCK = 64
_U8_STEPS, _S8_STEPS = 255.0, 127.0
# What giving up the fastest form everywhere costs, in dB of ``weighted_db``.
_PRICES_DB = {"per block": 5.0, "float": 10.0}


class ActivationForm(StrEnum):
    """How a layer gets its activations.

    PER_TENSOR rounds them to u8 with one scale and zero point at a run (DynamicQuantizeLinear), PER_BLOCK to s8 with a
    scale for each block of a row (MatMulNBits with accuracy level 4), and FLOAT not at all.
    """

    PER_TENSOR = "per tensor"
    PER_BLOCK = "per block"
    FLOAT = "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormCost:
    """Layers that change together, in two forms.

    Attributes:
        layers: their names.
        work: their share of the multiply-adds of all layers, 0 to 1.
        before: the noise over signal that they alone cause in the form that they have.
        after: the same in the form that they might get.
    """

    layers: tuple[str, ...]
    work: float
    before: float
    after: float

    @property
    def reward(self) -> float:
        """Noise that the change takes away, per work."""
        return (self.before - self.after) / max(self.work, 1e-12)


def rounded_activations(values: Array, form: ActivationForm) -> Array:
    """Returns ``values``, float32 (..., channels), as kernels of ``form`` read them.

    Sources: https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html, and for blocks
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits.
    """
    if form is ActivationForm.FLOAT or not values.size:
        return values
    if form is ActivationForm.PER_TENSOR:
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        scale = (high - low) / _U8_STEPS or 1.0
        zero = np.clip(np.rint(-low / scale), 0.0, _U8_STEPS)
        rounded = (np.clip(np.rint(values / scale) + zero, 0.0, _U8_STEPS) - zero) * scale
        return np.asarray(rounded, np.float32)
    channels = values.shape[-1]
    padded = np.pad(values.reshape(-1, channels), [(0, 0), (0, -channels % BLOCK)])
    blocks = padded.reshape(len(padded), -1, BLOCK)
    scales = np.abs(blocks).max(axis=2, keepdims=True) / _S8_STEPS
    scales[scales == 0.0] = 1.0
    rounded = (np.rint(blocks / scales) * scales).reshape(len(padded), -1)[:, :channels]
    return np.asarray(rounded.reshape(values.shape), np.float32)


def merit_db(sqnr_db: float, works: Mapping[ActivationForm, float]) -> float:
    """Returns the merit of a choice in dB: weighted SQNR less the price of the slower forms' share of the work."""
    return weighted_db(sqnr_db) - sum(_PRICES_DB.get(form, 0.0) * work for form, work in works.items())


def promising_lengths(costs: Sequence[FormCost], sqnr_db: float, form: ActivationForm, most: int) -> list[int]:
    """Returns how many of ``costs``, in order, are worth trying in ``form``: up to ``most`` lengths, all of them last.

    What is left of the noise follows from the sum of the layers' own; ``sqnr_db`` is measured without any change.
    """
    total = sum(cost.before for cost in costs) or 1.0
    merits = []
    left, work = total, 0.0
    for cost in costs:
        left -= cost.before - cost.after
        work += cost.work
        gained = -10.0 * np.log10(max(left / total, 1e-6))
        merits.append(merit_db(sqnr_db + gained, {form: work}))
    best = int(np.argmax(merits)) + 1
    wanted = [best, 2 * best, best // 2, round(1.4 * best), 3 * best]
    lengths = list(dict.fromkeys(min(max(length, 1), len(costs)) for length in wanted))
    return list(dict.fromkeys([*lengths[: most - 1], len(costs)]))
