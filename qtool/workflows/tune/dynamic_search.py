"""Searches the forms of a dynamically quantized model: smoothed channels, and scales a tensor or a block.

One pass over the layers: each layer's rounding error is put into a float run once, the sums of these noises order the
layers, and a few choices of how many of them change are evaluated as quantized models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Array, Feed
from qtool.errors import RuntimeRefusedError
from qtool.graph.constants import constant_array, is_transposed
from qtool.planning import build_dynamic_plan
from qtool.progress import Progress
from qtool.runtime.free_memory import give_back_memory
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Watcher
from qtool.schemes import DynamicScheme
from qtool.search.activation_forms import ActivationForm, FormCost, merit_db, promising_lengths, rounded_activations
from qtool.search.float_fallback import PERFECT_DB
from qtool.search.injected_noise import InjectedNoise, open_injected_noise
from qtool.search.logits_view import with_logits
from qtool.search.output_evaluator import OutputEvaluator
from qtool.selection import NodeSelection
from qtool.weights.smoothquant import (
    ChannelSpread,
    channel_spreads,
    own_weights,
    smooth,
    smoothable_inputs,
    smoothing_factors,
)
from qtool.workflows.tune.dynamic_candidates import DynamicCandidates
from qtool.workflows.tune.search_time import SearchTime
from qtool.workflows.tune.tuning_split import TuningSplit

# Less gain in dB is no reason to change every product.
_LEAST_GAIN_DB = 0.5
# Below this, blocks are not enough, and layers may stay float.
_SOUND_DB = 25.0
_SMOOTHED_ON = 12
_MOST_TRIES = 5
# Inputs of so many groups of layers are held at once.
_HELD_GROUPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicAttempt:
    """One evaluated form of the model.

    Attributes:
        smoothed: whether outlier channels were moved into the weights.
        layers: how many layers have each form.
        sqnr_db: SQNR of the worst output.
    """

    smoothed: bool
    layers: Mapping[ActivationForm, int]
    sqnr_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicChoice:
    """What a search has chosen.

    Attributes:
        candidates: makes the model.
        forms: of the layers that do not have one scale a tensor.
        smoothed: tensors whose outlier channels were moved into weights.
        attempts: what was evaluated, in order.
        stopped: why the search ended early; None where it did not.
    """

    candidates: DynamicCandidates
    forms: Mapping[str, ActivationForm] = field(default_factory=dict)
    smoothed: tuple[str, ...] = ()
    attempts: tuple[DynamicAttempt, ...] = ()
    stopped: str | None = None


class DynamicSearch:
    """Searches one model, as far as time allows."""

    def __init__(
        self,
        evaluator: OutputEvaluator,
        samples: TuningSplit,
        scheme: DynamicScheme,
        selection: NodeSelection,
        progress: Progress,
        *,
        time: SearchTime,
        settle: Callable[[], None],
        threads: int = 0,
    ) -> None:
        """Takes what measures the outputs, the samples to smooth on, and what gives back memory between steps."""
        self._settle = settle
        self._evaluator = evaluator
        self._samples = samples
        self._scheme = scheme
        self._selection = selection
        self._progress = progress
        self._time = time
        self._threads = threads
        self._attempts: list[DynamicAttempt] = []
        self._smoothed: tuple[str, ...] = ()

    def search(self, prepared: Callable[[], ir.Model]) -> DynamicChoice:
        """Returns the best form of a model; one float copy of it is held at a time.

        Args:
            prepared: returns the prepared float model, a new one at each call.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run the model.
            InputError: a weight holds NaN or infinity.
        """
        candidates = self._candidates(prepared())
        forms: dict[str, ActivationForm] = {}
        with self._progress.task("evaluating one scale a tensor"):
            reached = self._evaluated(candidates, forms)
        if reached < PERFECT_DB and not self._time.is_over():
            before = reached
            candidates = self._smooth(candidates)
            reached = self._evaluated(candidates, forms) if self._smoothed else before
            if self._smoothed and reached < before + _LEAST_GAIN_DB:
                self._smoothed, reached = (), before
                candidates = self._candidates(prepared())
        if reached < PERFECT_DB and not self._time.is_over():
            forms, reached = self._with_slower_forms(candidates, reached)
        return DynamicChoice(
            candidates=candidates,
            forms=forms,
            smoothed=self._smoothed,
            attempts=tuple(self._attempts),
            stopped=self._time.stopped,
        )

    def _candidates(self, model: ir.Model) -> DynamicCandidates:
        return DynamicCandidates(model, build_dynamic_plan(model, self._scheme, self._selection), self._scheme)

    def _evaluated(self, candidates: DynamicCandidates, forms: Mapping[str, ActivationForm]) -> float:
        sqnr_db = self._evaluator.sqnr_db(candidates(forms))
        self._settle()
        counts = {form: sum(found is form for found in forms.values()) for form in ActivationForm}
        counts[ActivationForm.PER_TENSOR] = len(candidates.plan.integer_nodes) - sum(counts.values())
        self._attempts.append(DynamicAttempt(smoothed=bool(self._smoothed), layers=counts, sqnr_db=sqnr_db))
        return sqnr_db

    def _smooth(self, candidates: DynamicCandidates) -> DynamicCandidates:
        """Smooths the channels of the candidates' own model, and returns candidates of what it is then."""
        model, layers = candidates.model, tuple(candidates.plan.integer_nodes)
        candidates.forget()
        with self._progress.task("looking for outlier channels"):
            self._smoothed = smooth_layers(model, layers, self._samples.some(_SMOOTHED_ON), threads=self._threads)
        self._settle()
        return self._candidates(model) if self._smoothed else candidates

    def _with_slower_forms(
        self, candidates: DynamicCandidates, reached: float
    ) -> tuple[dict[str, ActivationForm], float]:
        """Returns the layers to round in blocks, or to keep float, and the SQNR."""
        groups = _changing_together(candidates)
        if not groups:
            return {}, reached
        works = _works(candidates.model, [node for nodes in groups for node in nodes])
        candidates.forget()
        self._settle()
        noises = self._noises(candidates, groups)
        self._settle()
        forms: dict[str, ActivationForm] = {}
        for form, limit in ((ActivationForm.PER_BLOCK, PERFECT_DB), (ActivationForm.FLOAT, _SOUND_DB)):
            if reached >= limit or self._time.is_over():
                break
            costs = [
                FormCost(
                    layers=nodes,
                    work=sum(works[node] for node in nodes),
                    before=noises[nodes][forms.get(nodes[0], ActivationForm.PER_TENSOR)],
                    after=noises[nodes][form],
                )
                for nodes in groups
            ]
            forms, reached = self._best_length(candidates, costs, forms, reached, form, works)
        return forms, reached

    def _best_length(
        self,
        candidates: DynamicCandidates,
        costs: Sequence[FormCost],
        forms: Mapping[str, ActivationForm],
        reached: float,
        form: ActivationForm,
        works: Mapping[str, float],
    ) -> tuple[dict[str, ActivationForm], float]:
        """Evaluates a few numbers of layers in ``form``, and returns the best choice and its SQNR."""
        ordered = sorted((cost for cost in costs if cost.after < cost.before), key=lambda cost: -cost.reward)
        best, best_db = dict(forms), reached
        best_merit = merit_db(reached, _shares(best, works))
        if not ordered:
            return best, best_db
        lengths = promising_lengths(ordered, reached, form, _MOST_TRIES)
        with self._progress.task(f"trying layers {form}", len(lengths)) as advance:
            for length in lengths:
                if self._time.is_over():
                    break
                changed = {node: form for cost in ordered[:length] for node in cost.layers}
                tried = {**forms, **changed}
                try:
                    sqnr_db = self._evaluated(candidates, tried)
                except RuntimeRefusedError:
                    # Old versions of onnxruntime have no such kernel for 8 bits.
                    break
                merit = merit_db(sqnr_db, _shares(tried, works))
                if merit > best_merit:
                    best, best_db, best_merit = tried, sqnr_db, merit
                advance(1)
        return best, best_db

    def _noises(
        self, candidates: DynamicCandidates, groups: Sequence[tuple[str, ...]]
    ) -> dict[tuple[str, ...], dict[ActivationForm, float]]:
        """Returns by group the noise over signal that each form of its layers alone puts into the outputs.

        Groups that time does not suffice for count as without noise.
        """
        feed = _first_sample(candidates.model, self._samples.evaluation[0])
        nodes = {node.name: node for node in candidates.model.graph}
        layers = [node for group in groups for node in group]
        found = {group: dict.fromkeys(ActivationForm, 0.0) for group in groups}
        with (
            open_injected_noise(with_logits(candidates.model), layers, feed, threads=self._threads) as injected,
            self._progress.task("measuring the noise of layers", len(groups)) as advance,
        ):
            for first in range(0, len(groups), _HELD_GROUPS):
                part = groups[first : first + _HELD_GROUPS]
                inputs = injected.inputs([node for group in part for node in group])
                for group in part:
                    if self._time.is_over():
                        return found
                    readers = [(nodes[node], inputs[node]) for node in group]
                    found[group] |= _noises_of(injected, readers)
                    advance(1)
        return found


def smooth_layers(
    model: ir.Model, layers: Sequence[str], feeds: Iterable[Feed], *, threads: int = 0
) -> tuple[str, ...]:
    """Moves outlier channels of what ``layers`` read into their weights, in place, and returns the tensors' names.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    tensors = smoothable_inputs(model, layers)
    inputs = {value.name for value in model.graph.inputs}
    tensors = tuple(tensor for tensor in tensors if tensor.tensor not in inputs)
    if not tensors:
        return ()
    spreads = _spreads(model, [tensor.tensor for tensor in tensors], feeds, threads)
    give_back_memory(model)
    factors = {}
    for tensor in tensors:
        seen = spreads.get(tensor.tensor)
        if seen is None or len(seen.low) != tensor.channels or not np.isfinite(seen.mean_square).all():
            continue
        found = smoothing_factors(seen, own_weights(model, tensor))
        if found is not None:
            factors[tensor.tensor] = found
    smooth(model, [tensor for tensor in tensors if tensor.tensor in factors], factors)
    give_back_memory(model)
    return tuple(factors)


def _spreads(model: ir.Model, tensors: Sequence[str], feeds: Iterable[Feed], threads: int) -> dict[str, ChannelSpread]:
    """Returns the statistics of channels; the session, with its memory, ends with this function."""
    with watching(model, tensors) as graph, open_graph(graph, threads=threads, prepacks=False) as session:
        return channel_spreads(Watcher(session), feeds)


def _first_sample(model: ir.Model, feed: Feed) -> Feed:
    """Returns the first sample of a batch, which tells enough of each layer; the batch where its size is fixed."""
    firsts = {array.shape[0] if array.ndim else None for array in feed.values()}
    fixed = any(
        value.shape is None or not value.shape or isinstance(value.shape[0], int) for value in model.graph.inputs
    )
    return feed if fixed or len(firsts) != 1 or None in firsts else {name: array[:1] for name, array in feed.items()}


def _noises_of(injected: InjectedNoise, readers: Sequence[tuple[ir.Node, Array]]) -> dict[ActivationForm, float]:
    """Measures one scale a tensor at the outputs; blocks have as much less there as at the layers."""
    tensor, block = (
        {node.name or "": _error(node, values, form) for node, values in readers}
        for form in (ActivationForm.PER_TENSOR, ActivationForm.PER_BLOCK)
    )
    measured = injected.noise(tensor)
    powers = [sum(float(np.square(error).sum()) for error in errors.values()) for errors in (tensor, block)]
    less = powers[1] / powers[0] if powers[0] > 0.0 else 1.0
    return {ActivationForm.PER_TENSOR: measured, ActivationForm.PER_BLOCK: measured * less}


def _error(node: ir.Node, values: Array, form: ActivationForm) -> Array:
    weight = constant_array(node.inputs[1])
    if weight is None:
        raise AssertionError("only layers with stored weights are measured")
    error: Array = (rounded_activations(values, form) - values) @ (weight.T if is_transposed(node) else weight)
    return error


def _changing_together(candidates: DynamicCandidates) -> list[tuple[str, ...]]:
    """Returns the products in groups that read the same tensor or the same weight, in graph order."""
    reading = nx.Graph()
    order: dict[ir.Node, int] = {}
    for node in candidates.model.graph:
        if node.name in candidates.plan.integer_nodes and node.name not in candidates.plan.recurrent:
            order[node] = len(order)
            reading.add_edges_from((node, value) for value in node.inputs[:2])
    parts = [sorted(order.keys() & part, key=order.__getitem__) for part in nx.connected_components(reading)]
    return [tuple(node.name or "" for node in part) for part in sorted(parts, key=lambda part: order[part[0]])]


def _works(model: ir.Model, layers: Sequence[str]) -> dict[str, float]:
    """Returns each layer's share of the multiply-adds; all of them read as many rows."""
    nodes = {node.name: node for node in model.graph}
    sizes = {}
    for layer in layers:
        weight = nodes[layer].inputs[1]
        sizes[layer] = 1 if weight is None or weight.shape is None else math.prod(weight.shape.numpy())
    total = sum(sizes.values())
    return {layer: size / total for layer, size in sizes.items()}


def _shares(forms: Mapping[str, ActivationForm], works: Mapping[str, float]) -> dict[ActivationForm, float]:
    shares = dict.fromkeys(ActivationForm, 0.0)
    for layer, form in forms.items():
        shares[form] += works[layer]
    return shares
