"""Cross-layer equalization (M. Nagel et al., ICCV 2019) of a model, with channel statistics from data."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.plan import Plan
from qtool.progress import Progress
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Watcher
from qtool.weights.channel_importance import output_importance
from qtool.weights.channel_scaling import scale_channels
from qtool.weights.channel_statistics import gather_channels
from qtool.weights.cross_layer_equalization import equalizing_factors, watched_tensors
from qtool.weights.scaling_regions import scaling_regions


def equalize_model(
    model: ir.Model, plan: Plan, feeds: Iterable[Feed], progress: Progress, *, threads: int = 0
) -> tuple[str, ...]:
    """Equalizes channels of a prepared model, in place, where that is predicted to reduce the rounding noise.

    Returns:
        The names of the tensors that were equalized, in graph order.
    """
    regions = [region for region in scaling_regions(model) if not plan.activations.keys().isdisjoint(region.axes)]
    if not regions:
        return ()
    with (
        watching(model, watched_tensors(regions, plan)) as graph,
        open_graph(graph, threads=threads) as session,
        progress.task("comparing channels"),
    ):
        seen = gather_channels(Watcher(session), feeds, regions)
    importance = output_importance(model, regions, seen)
    chosen = []
    for region in regions:
        factors = equalizing_factors(model, plan, region, seen, importance)
        if factors is not None:
            chosen.append((region, factors))
    scale_channels(model, chosen)
    names = {name for region, _ in chosen for name in region.axes}
    return tuple(name for name in plan.activations if name in names)
