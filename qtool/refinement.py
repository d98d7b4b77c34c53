"""What a search over the data adds to a plain quantization: chosen ranges, and the moments that guide rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from calib.affine import AffineParams
from qtool.weights.input_moments import LayerInput, Moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """What was found; empty mappings where nothing was looked for.

    Attributes:
        ranges: parameters of activations by source, in place of those of the range method.
        methods: by source, the name of the method that proposed them.
        layers: how layers meet their inputs, by weight.
        moments: second moments of the layers' inputs, by node.
    """

    ranges: Mapping[str, AffineParams] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, LayerInput] = field(default_factory=dict)
    moments: Moments = field(default_factory=dict)
