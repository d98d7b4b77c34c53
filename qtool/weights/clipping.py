"""Weight clipping: narrows scales where clipping the largest weights costs less than the finer steps gain.

By default a channel's scale follows from its largest weight alone. Here it minimizes the error of the layer's products
over its inputs x, (w' - w)^T H (w' - w) with H = E[x x^T]. Source of H: E. Frantar et al., GPTQ (ICLR 2023),
equation 1; the ratios are searched one by one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qtool.calib.affine import SMALLEST_SCALE, quantize
from qtool.weights.input_hessian import LayerInput
from qtool.weights.round_to_nearest import LARGEST_BIAS, QuantizedWeight
from qtool.weights.weight_problem import WeightProblem

_RATIOS = tuple(1.0 - 0.025 * step for step in range(1, 21))
# The search of a channel ends once its error exceeds the minimum by this factor.
_HOPELESS = 2.0


def clipped(problem: WeightProblem, found: QuantizedWeight) -> QuantizedWeight:
    """Returns the weight on scales that cut off what costs less than the finer steps gain; see ``WeightAlgorithm``."""
    return clip_channels(problem.weight, found, problem.layer, problem.hessian, bias=problem.bias)


def clip_channels(
    weight: npt.NDArray[np.float32],
    rounded: QuantizedWeight,
    layer: LayerInput,
    hessian: npt.NDArray[np.float64],
    *,
    bias: npt.NDArray[np.floating[Any]] | None = None,
    input_scale: float = 1.0,
) -> QuantizedWeight:
    """Returns ``weight`` rounded to nearest with the scales, one per channel, that minimize the error of the products.

    Args:
        weight: the float weight.
        rounded: its integers rounded to nearest, on scales that clip nothing.
        layer: how the weight multiplies its input.
        hessian: H of the layer's input, (groups, inputs, inputs).
        bias: shape (outputs,), which must still fit into int32 on input scale times weight scale, or None.
        input_scale: scale of the activations that the weight multiplies.
    """
    params = rounded.params
    moved = np.moveaxis(weight, layer.output_axis, 0)
    rows = moved.reshape(len(moved), -1).astype(np.float32)
    shared = params.scale.size == 1
    scales = np.broadcast_to(params.scale.reshape(-1).astype(np.float64), len(rows))
    zeros = np.broadcast_to(params.zero_point.reshape(-1).astype(np.float32), len(rows))
    floor = _smallest_scales(bias, input_scale, len(rows), shared=shared)
    matrix = _normalized(hessian)

    def losses(ratios: npt.NDArray[np.float64], chosen: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        scale = (scales[chosen] * ratios[chosen]).astype(np.float32)[:, np.newaxis]
        low, high = params.grid.low - zeros[chosen, np.newaxis], params.grid.high - zeros[chosen, np.newaxis]
        change = np.clip(np.rint(rows[chosen] / scale), low, high) * scale - rows[chosen]
        return _energies(change, chosen // (len(rows) // layer.groups), matrix)

    best = np.ones(len(rows))
    active = np.arange(len(rows))
    least = losses(best, active)
    if shared:
        least = np.full(len(rows), least.sum())
    for ratio in _RATIOS:
        active = active[scales[active] * ratio >= floor[active]]
        if not active.size:
            break
        loss = losses(np.full(len(rows), ratio), active)
        if shared:
            loss = np.full(len(active), loss.sum())
        better = active[loss < least[active]]
        best[better] = ratio
        least[active] = np.minimum(least[active], loss)
        active = active[loss <= _HOPELESS * least[active]]
    ratios = best[:1] if shared else best
    scale = (params.scale.astype(np.float64) * ratios.reshape(params.scale.shape)).astype(np.float32)
    if (ratios == 1.0).all():
        return rounded
    narrowed = replace(params, scale=scale)
    return replace(rounded, params=narrowed, integers=quantize(weight, narrowed))


def _smallest_scales(
    bias: npt.NDArray[np.floating[Any]] | None, input_scale: float, count: int, *, shared: bool
) -> npt.NDArray[np.float64]:
    """Returns the smallest scales with which the bias leaves enough room in the accumulator."""
    if bias is None:
        return np.full(count, SMALLEST_SCALE)
    needed = np.abs(bias.reshape(-1).astype(np.float64)) / input_scale / LARGEST_BIAS
    if shared:
        needed = np.full(count, needed.max(initial=0.0))
    return np.maximum(needed, SMALLEST_SCALE)


def _normalized(hessian: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Returns the Hessian divided by its largest entry, which float32 holds precisely enough."""
    largest = float(np.abs(hessian).max(initial=0.0))
    return (hessian / largest if largest > 0 else hessian).astype(np.float32)


def _energies(
    change: npt.NDArray[np.float32], groups: npt.NDArray[np.intp], hessian: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Returns e^T H e of every row e of ``change`` with the Hessian of its group, (rows,)."""
    if len(hessian) == 1:
        products = change @ hessian[0]
    else:
        products = np.einsum("ri,rij->rj", change, hessian[groups], optimize=True)
    energies: npt.NDArray[np.float64] = np.einsum("ri,ri->r", products, change).astype(np.float64)
    return energies
