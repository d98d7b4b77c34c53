"""What a search over the data adds to a plain quantization: chosen ranges, and rounding that knows what layers read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qtool.calib.affine import AffineParams
from qtool.weights.rounding import WeightRounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrections:
    """What was found; empty mappings where nothing was looked for.

    Attributes:
        ranges: parameters of activations by source, in place of those of the range method.
        methods: by source, the name of the method that proposed them.
        rounding: turns weights into integers.
        biases: float32, (output channels,), by layer, in place of its own once it runs on integers.
    """

    ranges: Mapping[str, AffineParams] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    rounding: WeightRounding = field(default_factory=WeightRounding)
    biases: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
