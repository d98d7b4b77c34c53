"""Checks, and recalibrates, the activation ranges of a statically quantized graph after a merge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from qtool.calib.affine import Range
from qtool.calib.collect import collect
from qtool.calib.ranges.mse import MeanSquaredError
from qtool.calib.specs import Feed
from qtool.calib.statistics import TensorStatistics
from qtool.errors import InputError, RuntimeRefusedError
from qtool.formats.torch.example_inputs import EXAMPLE_SEED, first_sizes, make_feeds
from qtool.graph.constants import is_constant
from qtool.graph.specs import model_specs
from qtool.graph.weight_records import has_records
from qtool.lora.onnx.activation_ranges import (
    QuantizedActivation,
    grown,
    growth,
    quantized_activations,
    set_range,
    sharing,
)
from qtool.progress import Progress
from qtool.qdq.remove_dynamic import RemoveDynamic
from qtool.qdq.remove_qdq import RemoveQdq
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Session, Watcher
from qtool.workflows.lora.request import WiderRange
from qtool.workflows.quantize.check_result import input_spec
from qtool.workflows.quantize.data_request import USUAL_BATCH_SIZE, DataRequest
from qtool.workflows.quantize.prepared_model import single_sample
from qtool.workflows.tune.activation_memory import ActivationMemory

# Values that exceed their range by this factor make a model unusable.
REFUSED_GROWTH = 2.0
_TOLD_GROWTH = 1.25
_NAMED = ("QLinear", "QGemm", "QAttention", "QuantizeLinear")
_FIX = (
    "give real inputs with --calib-data, which sets the ranges again, or merge into the float model and quantize that"
)
Seen: TypeAlias = dict[str, TensorStatistics]


@dataclass(frozen=True, slots=True, kw_only=True)
class _FloatForm:
    """A graph without quantization of activations.

    Attributes:
        model: the graph.
        tensors: the names of the activations that were quantized, in order; None where one was removed.
    """

    model: ir.Model
    tensors: tuple[str | None, ...]

    @property
    def watched(self) -> tuple[str, ...]:
        """Every tensor once."""
        return tuple(dict.fromkeys(name for name in self.tensors if name is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRanges:
    """The ranges that were recalibrated.

    Attributes:
        wider: the ranges.
        layers: the layers with an input whose range doubled, or more.
    """

    wider: tuple[WiderRange, ...] = ()
    layers: frozenset[ir.Node] = frozenset()


class ActivationRanges:
    """Observes the activations of one graph before and after its weights change."""

    def __init__(self, model: ir.Model, data: DataRequest | None, progress: Progress, *, grows: bool = True) -> None:
        """Runs the float form of the unchanged graph.

        Args:
            model: the graph, to be changed in place later.
            data: real inputs; None for random ones.
            progress: receives the steps and warnings.
            grows: whether values may grow; otherwise it runs only with data.

        Raises:
            InputError: there is data, but no range to recalibrate.
            CalibError: the data does not fit the graph.
            RuntimeRefusedError: onnxruntime does not run the float form on the data.
        """
        self._model, self._data, self._progress = model, data, progress
        self._activations = quantized_activations(model)
        if data is not None and not self._activations:
            raise InputError(
                "the graph has no activation ranges, between QuantizeLinear and DequantizeLinear, to recalibrate",
                fix="drop --calib-data",
            )
        watched = bool(self._activations) and (grows or data is not None)
        self._before = self._measured("before") if watched else None

    def after_merge(self) -> SetRanges:
        """Runs the changed graph on the same inputs, and with real ones widens the ranges that are exceeded.

        Returns:
            The ranges that were set; without real inputs none.

        Raises:
            InputError: with random inputs, an activation exceeds its range by a factor of two or more.
        """
        if self._before is None:
            return SetRanges()
        after = self._measured("after")
        if after is None:
            return SetRanges()
        wider = []
        for group in sharing(self._activations):
            members = [self._activations[number] for number in group]
            spans = [self._grown(number, self._before, after) for number in group]
            span = members[0].span
            target = Range(min(span.low, *(each.low for each in spans)), max(span.high, *(each.high for each in spans)))
            most = max(range(len(group)), key=lambda place: growth(members[place].span, spans[place]))
            if growth(span, target) > 1.0:
                wider.append((members, WiderRange(tensor=members[most].tensor, before=span, after=target)))
        if self._data is None:
            self._refuse_much_wider([found for _, found in wider])
            return SetRanges()
        for members, found in wider:
            set_range(members, found.after)
        ranges = tuple(found for _, found in wider)
        if not any(found.growth >= REFUSED_GROWTH for found in ranges):
            return SetRanges(wider=ranges)
        moved = [
            activation
            for activation, one, other in zip(self._activations, self._before, after, strict=True)
            if one is not None and other is not None and _extremes(one) != _extremes(other)
        ]
        layers = {layer for activation in moved for layer in activation.layers}
        return SetRanges(wider=ranges, layers=frozenset(layers))

    def _refuse_much_wider(self, outgrown: Sequence[WiderRange]) -> None:
        worst = max(outgrown, key=lambda found: found.growth, default=None)
        if worst is None or worst.growth < _TOLD_GROWTH:
            return
        told = f"reaches {worst.growth:.3g} times its range, which was calibrated before the merge"
        if worst.growth >= REFUSED_GROWTH:
            raise InputError(f"'{worst.tensor}' {told}", fix=_FIX)
        self._progress.warn(f"on random inputs, '{worst.tensor}' {told}\n  {_FIX}")

    def _grown(
        self, number: int, before: Sequence[TensorStatistics | None], after: Sequence[TensorStatistics | None]
    ) -> Range:
        activation, first, second = self._activations[number], before[number], after[number]
        if first is None or second is None:
            return activation.span
        extremes = [_extremes(seen) for seen in (first, second)]
        keeps_zero = _keeps_clamps(self._model)
        wider = grown(activation.span, *extremes, symmetric=activation.grid.symmetric, keeps_zero=keeps_zero)
        if self._data is None or extremes[0] == extremes[1]:
            return wider
        # Values that were clipped because they were rare may be frequent now.
        fitted = MeanSquaredError().span(second, activation.grid)
        low = wider.low if keeps_zero and activation.span.low == 0.0 else min(wider.low, fitted.low)
        return Range(low, max(wider.high, fitted.high))

    def _measured(self, when: str) -> list[TensorStatistics | None] | None:
        """Returns the statistics of each activation; None where the graph does not run on random inputs."""
        try:
            form = _float_form(self._model, self._activations)
            if not form.watched:
                return [None] * len(self._activations)
            found = self._on_random_inputs(form) if self._data is None else self._on_data(form, self._data, when)
        except (InputError, RuntimeRefusedError) as error:
            if self._data is not None:
                raise
            self._progress.warn(
                f"the ranges of activations could not be checked after the merge: {error.problem}\n"
                "  give real inputs with --calib-data, which sets the ranges again"
            )
            return None
        return [None if name is None else found.get(name) for name in form.tensors]

    def _on_data(self, form: _FloatForm, request: DataRequest, when: str) -> Seen:
        dataset = request.open()
        memory = ActivationMemory.of(form.model, single_sample(form.model, dataset, request))
        data = replace(request, usual_batch_size=memory.batch_size(USUAL_BATCH_SIZE))
        feeds = data.feeds(dataset, *model_specs(form.model), remark=self._progress.note if when == "before" else None)
        with _watched(form) as session, self._progress.task(f"running it {when}", data.available(dataset)) as advance:
            collected = collect(Watcher(session), feeds, form.watched, advance=advance, outputs=())
        return {name: seen for name, seen in collected.statistics.items() if seen.batches}

    def _on_random_inputs(self, form: _FloatForm) -> Seen:
        with _watched(form) as session:
            specs = [input_spec(spec) for spec in session.inputs]
            feed = make_feeds(specs, first_sizes(specs, None), None)
            feed |= _rows_of_tables(form.model, feed)
            collected = collect(Watcher(session), [feed], form.watched, outputs=())
        return {name: seen for name, seen in collected.statistics.items() if seen.batches}


@contextmanager
def _watched(form: _FloatForm) -> Iterator[Session]:
    with watching(form.model, form.watched) as graph, open_graph(graph) as session:
        yield session


def _rows_of_tables(model: ir.Model, feed: Feed) -> Feed:
    """Returns random row indices over whole tables, for inputs that look up rows."""
    found = {}
    generator = np.random.default_rng(EXAMPLE_SEED)
    for value in model.graph.inputs:
        name, readers = value.name or "", [use for use in value.uses() if use.node.op_type != "Shape"]
        tables = [use.node.inputs[0] for use in readers if use.node.op_type == "Gather" and use.idx == 1]
        rows = [table.shape[0] for table in tables if table is not None and is_constant(table) and table.shape]
        least = min((count for count in rows if isinstance(count, int)), default=0)
        if least and len(rows) == len(readers) and name in feed and feed[name].dtype.kind in "iu":
            found[name] = generator.integers(0, least, feed[name].shape).astype(feed[name].dtype)
    return found


def _extremes(seen: TensorStatistics) -> Range:
    return Range(seen.minimum, seen.maximum)


def _keeps_clamps(model: ir.Model) -> bool:
    """Returns whether ranges that begin at zero may represent ReLUs that a quantizer removed; qtool removes none."""
    return not has_records(model)


def _float_form(model: ir.Model, activations: Sequence[QuantizedActivation]) -> _FloatForm:
    """Returns a copy of a graph, which is not modified, without Q and DQ.

    Raises:
        InputError: activations stay integers in it.
    """
    copy = model.clone()
    numbers = {node: number for number, node in enumerate(model.graph)}
    nodes = list(copy.graph)
    sources = [nodes[numbers[activation.quantize]].inputs[0] for activation in activations]
    RemoveDynamic()(copy)
    RemoveQdq(keeps_clamps=_keeps_clamps(model))(copy)
    for node in ir.traversal.RecursiveGraphIterator(copy.graph):
        if node.op_type.startswith(_NAMED):
            raise InputError(
                f"'{node.name}' ({node.op_type}) computes integers that have no float form",
                fix="merge into the float model and quantize that",
            )
    values = ir.convenience.create_value_mapping(copy.graph, include_subgraphs=False)
    there = [value is not None and value.name is not None and values.get(value.name) is value for value in sources]
    return _FloatForm(
        model=copy,
        tensors=tuple(
            value.name if value is not None and found and value.producer() is not None else None
            for value, found in zip(sources, there, strict=True)
        ),
    )
