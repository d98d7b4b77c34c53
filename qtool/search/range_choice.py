"""Chooses each activation's range among the proposals of the range methods, by the error of the model's outputs.

The error of the tensor itself is a poor criterion: a clipped outlier may carry a whole class, or nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import onnx_ir as ir

from qtool.calib.affine import AffineParams, params_from_range
from qtool.calib.datasets.data_shard import Seen
from qtool.calib.grid import Grid
from qtool.calib.ranges import RangeMethod
from qtool.calib.ranges.min_max import MinMax
from qtool.calib.ranges.moving_average import MovingAverage
from qtool.calib.ranges.mse import MeanSquaredError
from qtool.calib.ranges.percentile import Percentile
from qtool.calib.specs import Feed
from qtool.calib.statistics import TensorStatistics
from qtool.cluster.work import IN_THIS_PROCESS, Workers, results, threads_of
from qtool.fingerprint import graph_fingerprint
from qtool.metrics.noise import NoiseMeter
from qtool.plan import ActivationPlan, Plan
from qtool.progress import Advance, Progress
from qtool.runtime.packed_model import PackedModel
from qtool.search.fake_quant.fake_quant_graph import FakeQuantGraph, Stretch, open_fake_quant_graph
from qtool.search.fake_quant.noise_measurement import NoiseAlone

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
# What has so many times the noise of the best on few samples is not compared on more of them. A few samples that the
# model is unsure of hold most of the noise: on 4, moving averages were the best for a text direction classifier with
# 27 dB, and had 13 dB on all.
_CLOSE = 2.0


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposals:
    """A task: parameters of one tensor to measure.

    Attributes:
        source: the tensor.
        stretch: what to run for it.
        params: the parameters, in order.
        begun: the sums of signal and noise that the first ones gave on the first batch, by output; None where they are
            what is asked for.
    """

    source: str
    stretch: Stretch
    params: tuple[AffineParams, ...]
    begun: Mapping[str, Sequence[float]] | None = None

    @property
    def key(self) -> str:
        """Tells it from other tasks of the same work."""
        numbers = [(float(params.scale), int(params.zero_point)) for params in self.params]
        return repr((self.source, self.stretch, numbers, self.begun))


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNoiseWork:
    """Measures quantized activations one at a time, while all others are float.

    Attributes:
        model: the float model.
        activations: the plans of the tensors.
        feeds: the batches to evaluate on.
        threads: threads inside an operator.
        here: the graph where it is open in this process; it does not travel.
    """

    model: ir.Model
    activations: tuple[ActivationPlan, ...]
    feeds: Sequence[Feed]
    threads: int
    here: FakeQuantGraph | None = None

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the model as well."""
        return _unpacked, (PackedModel.of(self.model), self.activations, self.feeds, self.threads)

    @contextmanager
    def opened(self) -> Iterator[Callable[[Proposals], bytes]]:
        """Opens the graph, and yields what returns noise over signal of the worst output for every proposal, as text.

        Infinite for those that fell behind the best one. A task that nothing is begun of gives sums instead.
        """
        with self._graph() as graph, graph.one_by_one() as measured:
            yield partial(_noises, measured)

    def fingerprint(self) -> str:
        """Returns what tells it from other work, in words."""
        plans = [(plan.tensor, plan.source, plan.grid, sorted(plan.readers or ())) for plan in self.activations]
        digest = hashlib.sha256(repr((plans, self.threads)).encode()).hexdigest()
        seen = Seen()
        for number, feed in enumerate(self.feeds):
            seen.add(number, feed)
        return f"tensors alone {graph_fingerprint(self.model)} {digest} {seen}"

    @contextmanager
    def _graph(self) -> Iterator[FakeQuantGraph]:
        if self.here is not None:
            yield self.here
            return
        with open_fake_quant_graph(self.model, self.activations, self.feeds, threads=self.threads) as graph:
            yield graph


def _unpacked(
    model: PackedModel, activations: tuple[ActivationPlan, ...], feeds: Sequence[Feed], threads: int
) -> TensorNoiseWork:
    return TensorNoiseWork(model=model.unpacked(), activations=activations, feeds=feeds, threads=threads)


def _noises(measured: Callable[[str, Stretch], NoiseAlone], task: Proposals) -> bytes:
    noise = measured(task.source, task.stretch)
    if task.begun is None:
        return json.dumps(noise.on_first_batch(task.params[0]).sums).encode()
    return json.dumps(noise.race(task.params, NoiseMeter.of(task.begun))).encode()


def choose_ranges(
    model: ir.Model,
    plan: Plan,
    statistics: Mapping[str, TensorStatistics],
    feeds: Sequence[Feed],
    progress: Progress,
    *,
    others: Iterable[Feed] = (),
    each: bool = True,
    threads: int = 0,
    stop: Callable[[], bool] = lambda: False,
    workers: Workers = IN_THIS_PROCESS,
) -> RangeChoice:
    """Tries the proposals for one tensor at a time, the rest left float, and then all together.

    The best ones together are compared on other samples.

    Args:
        model: a prepared float model; not modified.
        plan: what will be quantized.
        statistics: of every source, limited to its useful values.
        feeds: a few batches to evaluate on.
        progress: receives the steps.
        others: more batches, to compare the best on.
        each: whether tensors may differ in their method; otherwise the best single method is taken.
        threads: threads inside an operator; 0 is one per core.
        stop: called before every try of a single tensor; when it returns True, the best so far is compared with each
            method for all tensors.
        workers: who measures tensors one at a time.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    grids = {activation.source: activation.grid for activation in plan.activations.values()}
    proposals = {source: _proposals(statistics[source], grid) for source, grid in grids.items()}
    activations, threads = tuple(plan.activations.values()), threads_of(workers, threads)
    with open_fake_quant_graph(model, activations, feeds, threads=threads) as graph:
        work = TensorNoiseWork(model=model, activations=activations, feeds=feeds, threads=threads, here=graph)
        search = _Search(graph, work, proposals, stop, workers)
        if each:
            with progress.task("choosing ranges", 2 * len(proposals)) as advance:
                search.each_alone(advance)
        with progress.task("comparing methods", len(CANDIDATES) + 1) as advance:
            return search.all_together(others, advance)


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
        self,
        graph: FakeQuantGraph,
        work: TensorNoiseWork,
        proposals: Mapping[str, Mapping[str, AffineParams]],
        stop: Callable[[], bool],
        workers: Workers,
    ) -> None:
        self._graph = graph
        self._work = work
        self._stop = stop
        self._workers = workers
        self._proposals = proposals
        self._chosen = {source: next(iter(options)) for source, options in proposals.items()}

    def each_alone(self, advance: Advance) -> None:
        """Finds the best proposal for each tensor while all others are float."""
        in_order = [source for source in self._graph.sources if source in self._proposals]
        first = {source: (self._proposals[source][self._chosen[source]],) for source in in_order}
        # One batch tells which tensors matter.
        begun = self._measured(first, {}, advance)
        if len(begun) < len(in_order):
            return
        alone = {source: NoiseMeter.of(begun[source]).worst() for source in in_order}
        total = sum(noise for noise in alone.values() if noise != math.inf)
        doubtful = [
            source
            for source in in_order
            if alone[source] >= _NEGLIGIBLE_SHARE * total and len(self._proposals[source]) > 1
        ]
        advance(len(in_order) - len(doubtful))
        proposed = {source: tuple(self._proposals[source].values()) for source in doubtful}
        for source, noises in self._measured(proposed, begun, advance).items():
            known = dict(zip(self._proposals[source], noises, strict=True))
            self._chosen[source] = min(known, key=lambda name: known[name])

    def _measured(
        self, params: Mapping[str, tuple[AffineParams, ...]], begun: Mapping[str, Any], advance: Advance
    ) -> dict[str, Any]:
        """Returns what ``TensorNoiseWork`` gives for each tensor, as far as time allows; ``params`` in graph order."""
        stretches = self._graph.stretches(tuple(params))
        asked: dict[str, str] = {}

        def tasks() -> Iterator[tuple[str, Proposals]]:
            for source, own in params.items():
                if self._stop():
                    return
                task = Proposals(source=source, stretch=stretches[source], params=own, begun=begun.get(source))
                asked[task.key] = source
                yield task.key, task

        kept = self._workers.kept(self._work.fingerprint)
        found = {}
        for key, result in results(self._workers, self._work, tasks(), kept=kept, accepts=_are_numbers):
            found[asked[key]] = json.loads(result)
            advance(1)
        return found

    def all_together(self, others: Iterable[Feed], advance: Advance) -> RangeChoice:
        """Compares the choices with each single method for all tensors, and returns the best."""
        choices = [self._chosen]
        for name in CANDIDATES:
            uniform = {
                source: name if name in options else next(iter(options)) for source, options in self._proposals.items()
            }
            if uniform not in choices:
                choices.append(uniform)
        advance(len(CANDIDATES) + 1 - len(choices))
        found = [self._noted(names, advance) for names in choices]
        least = min(choice.noise for choice in found)
        found = [choice for choice in found if choice.noise <= _CLOSE * least]
        noises = self._graph.noises([choice.params for choice in found], others, self._stop) if len(found) > 1 else None
        if noises:
            found = [replace(choice, noise=noise) for choice, noise in zip(found, noises, strict=True)]
        return min(found, key=lambda choice: choice.noise)

    def _noted(self, names: Mapping[str, str], advance: Advance) -> RangeChoice:
        params = self._params(names)
        noise = self._graph.noise(params)
        advance(1)
        return RangeChoice(params=params, methods=names, noise=noise)

    def _params(self, names: Mapping[str, str]) -> dict[str, AffineParams]:
        return {source: self._proposals[source][name] for source, name in names.items()}


def _are_numbers(result: bytes) -> bool:
    try:
        return isinstance(json.loads(result), list | dict)
    except ValueError:
        return False
