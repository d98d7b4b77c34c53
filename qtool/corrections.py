"""Corrections of a quantization: chosen ranges, GPTQ or reconstructed weights, corrected biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qtool.calib.affine import AffineParams
from qtool.weights.rounding import WeightRounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrections:
    """The results of a correction search; empty mappings where none was run.

    Attributes:
        ranges: parameters of activations by source, which replace those of the range method.
        methods: by source, the name of the method that proposed them.
        rounding: turns weights into integers.
        biases: new biases, float32, (output channels,), by layer, for quantized layers.
    """

    ranges: Mapping[str, AffineParams] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    rounding: WeightRounding = field(default_factory=WeightRounding)
    biases: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
