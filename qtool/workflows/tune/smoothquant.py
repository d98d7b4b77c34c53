"""SmoothQuant (G. Xiao et al., ICML 2023) on a model, with channel statistics from data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.plan import Plan
from qtool.progress import Progress
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Watcher
from qtool.weights.smoothquant import (
    ChannelSpread,
    channel_spreads,
    own_weights,
    smooth,
    smoothable_tensors,
    smoothing_factors,
)


def smooth_model(
    model: ir.Model, plan: Plan, feeds: Iterable[Feed], progress: Progress, *, threads: int = 0
) -> tuple[str, ...]:
    """Moves outlier channels of activations into the weights that multiply them, in place.

    Args:
        model: a prepared float model.
        plan: what will be quantized in it.
        feeds: a few batches.
        progress: receives the steps.
        threads: threads inside an operator; 0 is one per core.

    Returns:
        The names of the tensors that were smoothed.
    """
    tensors = smoothable_tensors(model, plan)
    if not tensors:
        return ()
    with progress.task("looking for outlier channels"):
        spreads = _spreads(model, [tensor.tensor for tensor in tensors], feeds, threads)
    fitting, factors = [], {}
    for tensor in tensors:
        seen = spreads.get(tensor.tensor)
        # Values that are not finite are reported by the calibration that follows.
        if seen is None or len(seen.low) != tensor.channels or not np.isfinite(seen.mean_square).all():
            continue
        found = smoothing_factors(seen, own_weights(model, tensor))
        if found is not None:
            fitting.append(tensor)
            factors[tensor.tensor] = found
    smooth(model, fitting, factors)
    return tuple(tensor.tensor for tensor in fitting)


def _spreads(model: ir.Model, tensors: Sequence[str], feeds: Iterable[Feed], threads: int) -> dict[str, ChannelSpread]:
    """Returns the statistics of channels; the session, with its memory, ends with this function."""
    with watching(model, tensors) as graph, open_graph(graph, threads=threads, prepacks=False) as session:
        return channel_spreads(Watcher(session), feeds)
