"""Keeps the grid of a clamped tensor inside the clamp, so that onnxruntime can fuse the clamp.

It removes a Clip before a QuantizeLinear only when no integer represents a value outside the bounds (its
ClipQuantFusion). A rounded zero point moves the ends of the grid by up to half a step, which is enough to keep the
Clip, and with it the layer before it, in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.calib.affine import AffineParams, Range
from qtool.graph.constants import clip_bounds
from qtool.plan import Plan


def within_clamps(model: ir.Model, plan: Plan, params: Mapping[str, AffineParams]) -> dict[str, AffineParams]:
    """Returns ``params``, narrowed for the tensors that a Clip with constant bounds makes."""
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    found = dict(params)
    for name in {activation.source for activation in plan.activations.values()}:
        producer = values[name].producer()
        if producer is not None and producer.op_type == "Clip" and producer.domain == "":
            found[name] = narrowed(params[name], Range(*clip_bounds(producer)))
    return found


def narrowed(params: AffineParams, bounds: Range) -> AffineParams:
    """Returns parameters of one tensor whose range is within ``bounds``; unchanged where it is already.

    Of the zero points next to the current one, takes the one that loses least at the ends, about half a step. Bounds
    without zero, and grids with a fixed zero point, are not changed.
    """
    grid, zero, span = params.grid, int(params.zero_point), params.range
    if grid.symmetric or not bounds.low <= 0.0 <= bounds.high or _is_within(params, bounds):
        return params
    below, above = -max(span.low, bounds.low), min(span.high, bounds.high)
    best, least = params, np.inf
    for candidate in range(max(zero - 1, grid.low), min(zero + 1, grid.high) + 1):
        ends = ((candidate - grid.low, below, -bounds.low), (grid.high - candidate, above, bounds.high))
        wanted = max(length / steps for steps, length, _ in ends if steps)
        scale = np.float32(min(wanted, *(bound / steps for steps, _, bound in ends if steps)))
        point = np.asarray(candidate, grid.dtype)
        found = replace(params, scale=np.asarray(scale), zero_point=point)
        while scale > 0 and not _is_within(found, bounds):  # rounding to float32 may have increased it
            scale = np.nextafter(scale, np.float32(0))
            found = replace(found, scale=np.asarray(scale))
        lost = max(length - steps * float(scale) for steps, length, _ in ends)
        if scale > 0 and lost < least:
            best, least = found, lost
    return best


def _is_within(params: AffineParams, bounds: Range) -> bool:
    """Compares as onnxruntime does, in float32."""
    scale, zero = np.float32(params.scale), int(params.zero_point)
    lowest = np.float32(params.grid.low - zero) * scale
    highest = np.float32(params.grid.high - zero) * scale
    return bool(lowest >= np.float32(bounds.low) and highest <= np.float32(bounds.high))
