"""Checks a quantized model against its float model before it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import onnx_ir as ir

from qtool.backends.execution import AS_IT_IS, Execution
from qtool.calib.datasets.base import Dataset
from qtool.calib.specs import Feed, TensorSpec, batch_length
from qtool.errors import InputError
from qtool.formats.onnx.map_types import load_model
from qtool.formats.torch.example_inputs import InputSpec, first_sizes, make_feeds
from qtool.graph.decoder_caches import cache_outputs
from qtool.graph.specs import model_specs
from qtool.llm.random_prompt import random_prompt
from qtool.metrics.fidelity import FidelityMeter, OutputFidelity
from qtool.metrics.outlook import SATURATING, Outlook, OutlookMeter
from qtool.runtime.parts import needs_parts, parts_of
from qtool.runtime.running_model import RunningModel
from qtool.search.logits_view import Gate, with_logits_of_outputs
from qtool.search.output_evaluator import worst_sqnr_db
from qtool.workflows.convert.random_inputs import on_random_inputs
from qtool.workflows.quantize.data_request import DataRequest
from qtool.workflows.quantize.holdout_split import HoldoutSplit
from qtool.workflows.tune.activation_memory import UNKNOWN_MEMORY, ActivationMemory

# Without a holdout, so many calibration batches at least show that the result is usable.
_FEW = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSamples:
    """The source of the samples for the comparison.

    Attributes:
        dataset: the calibration data.
        data: the options of its use.
        holdout: the part of it that the calibration does not use.
        memory: memory of a sample's activations.
    """

    dataset: Dataset
    data: DataRequest
    holdout: HoldoutSplit
    memory: ActivationMemory = UNKNOWN_MEMORY


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultComparison:
    """How close two models are.

    Attributes:
        fidelity: by output.
        samples: the samples of the comparison, in words.
        on_data: whether that was real data.
        outlooks: expected fidelity on other data, by output; empty without real data.
        runtimes_db: SQNR of the float model's worst output in the runtime beside that in onnxruntime, where its ranges
            come from; None where both are one.
    """

    fidelity: tuple[OutputFidelity, ...]
    samples: str
    on_data: bool
    outlooks: Mapping[str, Outlook] = field(default_factory=dict)
    runtimes_db: float | None = None


def compare_with_float(
    original: ir.Model,
    quantized: Path,
    samples: CheckSamples | None,
    *,
    execution: Execution = AS_IT_IS,
    threads: int = 0,
) -> ResultComparison:
    """Runs both models on held-out samples, or else on some calibration samples, or on random inputs.

    Both run with ``execution``.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the quantized model.
        InputError: its outputs are not finite where those of the float model are.
        NoRandomInputsError: there are no samples, and the float model does not run without.
    """
    meter, between = FidelityMeter(), FidelityMeter()
    opened, gates = with_logits_of_outputs(original)
    caches = cache_outputs(original)
    names = [value.name or "" for value in original.graph.outputs if value.name not in caches]
    outlooks = {name: OutlookMeter(_saturating(gates.get(name))) for name in names}
    with ExitStack() as stack:
        quantized_session: RunningModel
        in_parts = compares_in_parts(original, execution)
        float_session = _float_session(opened if gates else original, execution, threads, stack, in_parts=in_parts)
        if in_parts:
            graph = load_model(quantized)
            quantized_session = parts_of(with_logits_of_outputs(graph)[0] if gates else graph)
        elif gates:
            quantized_graph = with_logits_of_outputs(load_model(quantized))[0]
            quantized_session = stack.enter_context(execution.open(quantized_graph, threads=threads))
        else:
            quantized_session = stack.enter_context(execution.open_file(quantized, threads=threads))
        differs = execution.runtime != AS_IT_IS.runtime
        other = stack.enter_context(AS_IT_IS.open_float(original, threads=threads)) if differs else None
        seen = 0
        for feed in _feeds(float_session.inputs, float_session.outputs, samples):
            with on_random_inputs() if samples is None else nullcontext():
                expected = float_session.run(feed)
            got = quantized_session.run(feed)
            rows = batch_length(feed)
            meter.add({name: expected[name] for name in outlooks}, got)
            if other is not None:
                between.add(other.run(feed), expected)
            for name, outlook in outlooks.items():
                gate = gates.get(name)
                pair = None
                if gate is not None and gate.before in got:
                    pair = (expected[gate.before], got[gate.before])
                outlook.add(expected[name], got[name], rows, pair)
            seen += rows
    results = meter.results()
    for output in results:
        if output.non_finite:
            raise InputError(
                f"the quantized model's output '{output.name}' has {output.non_finite} non-finite values",
                fix="keep the layers before it float with --exclude, or try another --method",
            )
    found = {name: outlook.result() for name, outlook in outlooks.items() if samples is not None}
    return ResultComparison(
        fidelity=results,
        samples=_in_words(samples, seen),
        on_data=samples is not None,
        outlooks={name: outlook for name, outlook in found.items() if outlook is not None},
        runtimes_db=worst_sqnr_db(between.results()) if differs else None,
    )


def held_samples(original: ir.Model, samples: CheckSamples) -> tuple[Feed, ...]:
    """Returns the batches that ``compare_with_float`` runs, held in memory."""
    return tuple(_feeds(*model_specs(original), samples))


def compares_in_parts(original: ir.Model, execution: Execution) -> bool:
    """Returns whether a float model is too large to be held in memory: a part of it runs at a time then."""
    return execution.runtime == AS_IT_IS.runtime and needs_parts(original)


def _float_session(
    model: ir.Model, execution: Execution, threads: int, stack: ExitStack, *, in_parts: bool
) -> RunningModel:
    return parts_of(model) if in_parts else stack.enter_context(execution.open_float(model, threads=threads))


def _saturating(gate: Gate | None) -> str | None:
    return gate.operator if gate is not None and gate.operator in SATURATING else None


def _feeds(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], samples: CheckSamples | None) -> Iterator[Feed]:
    if samples is None:
        specs = [input_spec(spec) for spec in inputs]
        prompt = random_prompt(inputs, outputs)
        yield make_feeds(specs, first_sizes(specs, None), None) if prompt is None else prompt
        return
    feeds = samples.data.feeds(samples.dataset, inputs, outputs)
    yield from samples.holdout.aside(feeds) if samples.holdout.every else islice(feeds, _FEW)


def input_spec(spec: TensorSpec) -> InputSpec:
    """Returns an input as the example producer expects it; each unknown dimension becomes a separate free one."""
    dims = tuple(f"{spec.name}_{axis}" if dim is None else dim for axis, dim in enumerate(spec.shape or ()))
    return InputSpec(name=spec.name, dims=dims, dtype=spec.dtype)


def _in_words(samples: CheckSamples | None, seen: int) -> str:
    if samples is None:
        return "random inputs, which are not representative"
    plural = "" if seen == 1 else "s"
    return f"{seen} sample{plural} held back" if samples.holdout.every else f"{seen} calibration sample{plural}"
