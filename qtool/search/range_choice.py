"""Chooses each activation's range among the proposals of the range methods, by the error of the model's outputs.

The error of the tensor itself is a poor criterion: a clipped outlier may carry a whole class, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qtool.calib.affine import AffineParams, params_from_range
from qtool.calib.grid import Grid
from qtool.calib.ranges import RangeMethod
from qtool.calib.ranges.min_max import MinMax
from qtool.calib.ranges.moving_average import MovingAverage
from qtool.calib.ranges.mse import MeanSquaredError
from qtool.calib.ranges.percentile import Percentile
from qtool.calib.specs import Feed
from qtool.calib.statistics import TensorStatistics
from qtool.plan import Plan
from qtool.progress import Advance, Progress
from qtool.search.fake_quant_graph import FakeQuantGraph, open_fake_quant_graph

# In order of preference among equals. Entropy is left out: it clips much, which a few samples may not show.
CANDIDATES: Mapping[str, RangeMethod] = {
    "minmax": MinMax(),
    "moving-average": MovingAverage(),
    "mse": MeanSquaredError(),
    "percentile 99.999": Percentile(0.99999),
    "percentile 99.99": Percentile(0.9999),
    "percentile 99.9": Percentile(0.999),
}
# Tensors with a smaller share of the noise keep the first method.
_NEGLIGIBLE_SHARE = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeChoice:
    """The ranges that were chosen.

    Attributes:
        params: by source.
        methods: the name of the method that proposed it, by source.
        noise: noise over signal of the worst output with all activations quantized so, and nothing else.
    """

    params: Mapping[str, AffineParams]
    methods: Mapping[str, str]
    noise: float


def choose_ranges(
    model: ir.Model,
    plan: Plan,
    statistics: Mapping[str, TensorStatistics],
    feeds: Sequence[Feed],
    progress: Progress,
    *,
    each: bool = True,
    threads: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> RangeChoice:
    """Tries the proposals for one tensor at a time, the rest left float, and then all together.

    Args:
        model: a prepared float model; not modified.
        plan: what will be quantized.
        statistics: of every source, limited to its useful values.
        feeds: a few batches to evaluate on.
        progress: receives the steps.
        each: whether tensors may differ in their method; otherwise the best single method is taken.
        threads: threads inside an operator; 0 is one per core.
        stop: called before every try of a single tensor; when it returns True, the best so far is compared with each
            method for all tensors.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    grids = {activation.source: activation.grid for activation in plan.activations.values()}
    proposals = {source: _proposals(statistics[source], grid) for source, grid in grids.items()}
    with open_fake_quant_graph(model, plan, feeds, threads=threads) as runner:
        search = _Search(runner, proposals, stop)
        if each:
            with progress.task("choosing ranges", 2 * len(proposals)) as advance:
                search.each_alone(advance)
        with progress.task("comparing methods", len(CANDIDATES) + 1) as advance:
            return search.all_together(advance)


def _proposals(seen: TensorStatistics, grid: Grid) -> dict[str, AffineParams]:
    """Returns the parameters that each method proposes for a tensor, without duplicates."""
    found: dict[str, AffineParams] = {}
    known: set[tuple[float, int]] = set()
    for name, method in CANDIDATES.items():
        params = params_from_range(method.span(seen, grid), grid)
        key = (float(f"{float(params.scale):.2e}"), int(params.zero_point))
        if key not in known:
            known.add(key)
            found[name] = params
    return found


class _Search:
    """Holds the current choices and evaluates others."""

    def __init__(
        self, runner: FakeQuantGraph, proposals: Mapping[str, Mapping[str, AffineParams]], stop: Callable[[], bool]
    ) -> None:
        self._runner = runner
        self._stop = stop
        self._proposals = proposals
        self._chosen = {source: next(iter(options)) for source, options in proposals.items()}

    def each_alone(self, advance: Advance) -> None:
        """Finds the best proposal for each tensor while all others are float."""
        in_order = [source for source in self._runner.sources if source in self._proposals]
        alone = {}
        for source, noise in self._runner.one_by_one(in_order):
            if self._stop():
                return
            # One batch tells which tensors matter.
            alone[source] = noise.on_first_batch(self._proposals[source][self._chosen[source]])
            advance(1)
        total = sum(noise for noise in alone.values() if noise != float("inf"))
        doubtful = [
            source
            for source in in_order
            if alone[source] >= _NEGLIGIBLE_SHARE * total and len(self._proposals[source]) > 1
        ]
        advance(len(in_order) - len(doubtful))
        for source, noise in self._runner.one_by_one(doubtful):
            if self._stop():
                return
            first, *others = self._proposals[source]
            noises = {first: noise(self._proposals[source][first])}
            for name in others:
                noises[name] = noise(self._proposals[source][name], enough=min(noises.values()))
            self._chosen[source] = min(noises, key=lambda name: noises[name])
            advance(1)

    def all_together(self, advance: Advance) -> RangeChoice:
        """Compares the choices with each single method for all tensors, and returns the best."""
        best, best_noise = self._chosen, self._noise(self._params(self._chosen))
        for name in CANDIDATES:
            uniform = {
                source: name if name in options else next(iter(options)) for source, options in self._proposals.items()
            }
            noise = self._noise(self._params(uniform))
            if noise < best_noise:
                best, best_noise = uniform, noise
            advance(1)
        return RangeChoice(params=self._params(best), methods=best, noise=best_noise)

    def _params(self, names: Mapping[str, str]) -> dict[str, AffineParams]:
        return {source: self._proposals[source][name] for source, name in names.items()}

    def _noise(self, params: Mapping[str, AffineParams]) -> float:
        return self._runner.noise(params)
