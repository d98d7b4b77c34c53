"""Layer-wise comparison: the error of each inner tensor of a quantized model, and histograms of its values."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from qtool.backends.execution import TARGET_KEY
from qtool.backends.execution_choice import execution_of
from qtool.calib.datasets.base import Dataset
from qtool.calib.specs import Feed
from qtool.errors import InputError, RuntimeRefusedError, UsageError
from qtool.formats.onnx.map_types import load_model
from qtool.graph.constants import constant_array
from qtool.metrics.layers import HistogramMeter, LayerFidelity, LayerMeter, Span, TensorHistogram
from qtool.progress import Progress
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.running_model import RunningModel
from qtool.workflows.report.report_data import OpenData

# Every tensor of the graph is held at once, so few samples run, one at a time.
_SAMPLES = 16
_WORST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """The inner tensors of one quantized model.

    Attributes:
        layers: every tensor that both models have, in the order of the float model.
        histograms: of the requested tensors, or of the worst ones.
    """

    layers: tuple[LayerFidelity, ...] = ()
    histograms: tuple[TensorHistogram, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Twin:
    """A tensor that both graphs have.

    Attributes:
        tensor: its name in the float model.
        other: the name of its values, as floats, in the quantized model.
        operator: what makes it in the float model.
        span: the range of its integers; None where it has none.
    """

    tensor: str
    other: str
    operator: str
    span: Span | None


def looked_inside(
    paths: Sequence[Path],
    opened: OpenData,
    *,
    inside: Literal["no", "if possible", "yes"],
    limit: int | None,
    histograms: Sequence[str],
    threads: int,
    progress: Progress,
) -> list[Inside]:
    """Returns what ``look_inside`` finds in every model but the first, which is the float model.

    Raises:
        InputError: that was asked for, and cannot be done.
        RuntimeRefusedError: onnxruntime does not run a model.
    """
    # All tensors of a row of text are many times what a language model itself takes.
    unasked = "no" if opened.tokenizer is None else "if possible"
    if inside in ("no", unasked) and not histograms:
        return [Inside() for _ in paths[1:]]
    try:
        return [
            look_inside(
                paths[0],
                path,
                opened.data,
                limit=limit,
                histograms=histograms,
                threads=threads,
                progress=progress,
            )
            for path in paths[1:]
        ]
    except (InputError, RuntimeRefusedError) as error:
        if inside == "yes" or histograms:
            raise
        progress.note(f"the tensors inside are not compared: {error.problem}")
        return [Inside() for _ in paths[1:]]


def look_inside(
    float_model: Path,
    quantized_model: Path,
    data: Dataset,
    *,
    limit: int | None,
    histograms: Sequence[str],
    threads: int,
    progress: Progress,
) -> Inside:
    """Runs both graphs on up to 16 samples with every common tensor as an output.

    Args:
        float_model: the float graph.
        quantized_model: its quantized graph.
        data: the samples.
        limit: use only the first so many samples.
        histograms: patterns of tensor names to draw; without any, the worst quantized tensors are drawn.
        threads: threads inside an operator; 0 is one per core.
        progress: receives the steps.

    Raises:
        InputError: the graphs have no tensor in common.
        UsageError: a pattern matches no quantized tensor.
        RuntimeRefusedError: onnxruntime does not run one of the graphs with these outputs.
        CalibError: the data does not fit the models.
    """
    original, quantized = load_model(float_model), load_model(quantized_model)
    twins = _twins(original, quantized)
    if not twins:
        raise InputError(
            f"{quantized_model.name} has no tensor of a name that {float_model.name} has",
            fix="compare a model with the one that was made from it, or leave --layers out",
        )
    chosen = _matching(histograms, twins)
    meters = {twin.tensor: LayerMeter() for twin in twins}
    samples = min(_SAMPLES, limit or _SAMPLES)
    with ExitStack() as stack:
        left, right = (
            stack.enter_context(
                execution_of(graph.metadata_props.get(TARGET_KEY)).open(
                    stack.enter_context(watching(graph, names)), threads=threads
                )
            )
            for graph, names in (
                (original, list(dict.fromkeys(twin.tensor for twin in twins))),
                (quantized, list(dict.fromkeys(twin.other for twin in twins))),
            )
        )
        with progress.task("comparing layers", samples) as advance:
            for feed in _samples(left, data, samples):
                expected, got = left.run(feed), right.run(feed)
                for twin in twins:
                    meters[twin.tensor].add(expected[twin.tensor], got[twin.other])
                advance(1)
    layers = [meters[twin.tensor].result(twin.tensor, twin.operator, quantized=twin.span is not None) for twin in twins]
    shown = chosen or _worst(twins, layers)
    with (
        watching(original, [twin.tensor for twin in shown] or [twins[0].tensor]),
        open_graph(original, threads=threads) as session,
    ):
        return Inside(layers=tuple(layers), histograms=_drawn(shown, meters, session, _samples(session, data, samples)))


def _samples(session: RunningModel, data: Dataset, count: int) -> Iterator[Feed]:
    return itertools.islice(data.feeds(session.inputs, batch_size=1), count)


def _drawn(
    twins: Sequence[_Twin], meters: dict[str, LayerMeter], session: RunningModel, feeds: Iterator[Feed]
) -> tuple[TensorHistogram, ...]:
    drawn: dict[str, HistogramMeter] = {}
    for twin in twins:
        meter, span = meters[twin.tensor], twin.span
        if span is not None and np.isfinite([meter.minimum, meter.maximum]).all():
            drawn[twin.tensor] = HistogramMeter(span, minimum=meter.minimum, maximum=meter.maximum)
    for feed in feeds if drawn else ():
        values = session.run(feed)
        for tensor, histogram in drawn.items():
            histogram.add(values[tensor])
    return tuple(histogram.result(tensor) for tensor, histogram in drawn.items())


def _twins(original: ir.Model, quantized: ir.Model) -> list[_Twin]:
    """Matches tensors by name; quantized ones are read after DequantizeLinear."""
    others = {value.name: value for node in quantized.graph for value in node.outputs}
    stored = {}
    for node in quantized.graph:
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
            quantize = node.inputs[0].producer()
            span = _span(node)
            if quantize is not None and quantize.op_type == "QuantizeLinear" and quantize.inputs[0] and span:
                stored[quantize.inputs[0].name] = (node.outputs[0].name or "", span)
                # The model's own outputs keep their names after DequantizeLinear.
                stored[node.outputs[0].name] = (node.outputs[0].name or "", span)
    found = []
    for node in original.graph:
        for value in node.outputs:
            # Only floats have noise; where the type is not known, it shows as the graph runs.
            if not value.name or value.dtype not in (None, ir.DataType.FLOAT):
                continue
            if value.name in stored:
                other, span = stored[value.name]
                found.append(_Twin(tensor=value.name, other=other, operator=node.op_type, span=span))
            elif value.name in others:
                found.append(_Twin(tensor=value.name, other=value.name, operator=node.op_type, span=None))
    return found


def _span(node: ir.Node) -> Span | None:
    """Returns the range of the integers; None where there is a scale per channel."""
    source, scale = node.inputs[0], constant_array(node.inputs[1])
    zero_value = node.inputs[2] if len(node.inputs) > 2 else None
    zero = np.zeros((), np.uint8) if zero_value is None else constant_array(zero_value)
    if source is None or scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
        return None
    limits = np.iinfo(zero.dtype)
    low, high = ((end - int(zero.reshape(()))) * float(scale.reshape(())) for end in (limits.min, limits.max))
    return Span(low=low, high=high, step=float(scale.reshape(())))


def _matching(patterns: Sequence[str], twins: Sequence[_Twin]) -> list[_Twin]:
    quantized = [twin for twin in twins if twin.span is not None]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(twin.tensor, pattern) for twin in quantized):
            raise UsageError(
                f"--histogram {pattern} matches no quantized tensor",
                fix="give names that `--layers --json` lists, such as " + ", ".join(t.tensor for t in quantized[:3]),
            )
    return [twin for twin in quantized if any(fnmatch.fnmatchcase(twin.tensor, pattern) for pattern in patterns)]


def _worst(twins: Sequence[_Twin], layers: Sequence[LayerFidelity]) -> list[_Twin]:
    # Rescaled tensors have other values in the float model than the range is for.
    known = [
        (layer.sqnr_db, place)
        for place, layer in enumerate(layers)
        if layer.quantized and not layer.rescaled and not np.isnan(layer.sqnr_db)
    ]
    return [twins[place] for _, place in sorted(known)[:_WORST]]
