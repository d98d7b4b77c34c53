"""Compares a quantized model with its own float form, for single tensors and nodes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qtool.backends.execution import TARGET_KEY
from qtool.backends.execution_choice import execution_of
from qtool.calib.specs import Feed
from qtool.graph.specs import specs_of
from qtool.metrics.noise import NoiseMeter
from qtool.metrics.tensor_error import TensorError, TensorErrorMeter
from qtool.progress import Progress
from qtool.qdq.quantized_tensors import QuantizedTensor
from qtool.qdq.remove_blocks import RemoveBlocks
from qtool.qdq.remove_dynamic import RemoveDynamic
from qtool.qdq.remove_qdq import RemoveQdq
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.profile import kernel_times
from qtool.workflows.quantize.data_request import DataRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTime:
    """The run time of one node, from onnxruntime's profiler.

    Attributes:
        seconds: in the quantized model.
        share: of that model's time, 0 to 1.
        float_seconds: in the float model; None where it is fused into another kernel there.
    """

    seconds: float
    share: float
    float_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The measurements.

    Attributes:
        errors: of tensors that become integers, by the tensor's name in the float model.
        noise_db: SQNR of tensors that stay float; infinite where they are the same.
        times: by the node's name.
        samples: how many samples passed.
    """

    errors: Mapping[str, TensorError]
    noise_db: Mapping[str, float]
    times: Mapping[str, NodeTime]
    samples: int


def measure(
    model: ir.Model,
    tensors: Sequence[QuantizedTensor],
    others: Sequence[str],
    data: DataRequest,
    progress: Progress,
    *,
    threads: int,
) -> Measured:
    """Compares tensors with those of the same model without Q and DQ, and times every kernel of both.

    The float form has the dequantized weights, so that only the error of activations is measured.

    Args:
        model: the quantized model, which is not modified.
        tensors: those of its tensors that become integers.
        others: names of those that stay float; constants and what one of the graphs lacks are left out.
        data: the samples.
        progress: receives the steps.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        CalibError: the samples do not fit the model.
        RuntimeRefusedError: onnxruntime does not load or run one of the models.
    """
    floats = model.clone()
    RemoveBlocks()(floats)
    RemoveDynamic()(floats)
    RemoveQdq()(floats)
    dataset = data.open()
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    feeds = data.feeds(dataset, specs_of(inputs), specs_of(model.graph.outputs), remark=progress.note)
    plain = [name for name in others if _is_computed(floats, name) and _is_computed(model, name)]
    meters = {tensor.tensor: TensorErrorMeter(tensor) for tensor in tensors}
    noise = {name: NoiseMeter() for name in plain}
    float_names = {tensor.tensor: _float_name(floats, tensor) for tensor in tensors} | {name: name for name in plain}
    names = {tensor.tensor: tensor.dequantized.name or "" for tensor in tensors} | {name: name for name in plain}
    first: Feed | None = None
    samples = 0
    with (
        watching(floats, _outputs(floats, float_names.values())) as float_graph,
        watching(model, _outputs(model, names.values())) as graph,
        open_graph(float_graph, threads=threads) as float_session,
        execution_of(model.metadata_props.get(TARGET_KEY)).open(graph, threads=threads) as session,
        progress.task("measuring", data.available(dataset)) as advance,
    ):
        for feed in feeds:
            first = feed if first is None else first
            expected, got = {**feed, **float_session.run(feed)}, session.run(feed)
            for name, meter in meters.items():
                meter.add(expected[float_names[name]], got[names[name]])
            for name, other in noise.items():
                other.add({name: expected[name]}, {name: got[name]})
            lead = next(iter(feed.values()))
            size = int(lead.shape[0]) if lead.ndim else 1
            samples += size
            advance(size)
    results = {name: meter.result() for name, meter in meters.items()}
    return Measured(
        errors={name: error for name, error in results.items() if error is not None},
        noise_db={name: _decibels(meter.worst()) for name, meter in noise.items()},
        times={} if first is None else _times(model, floats, first, threads=threads),
        samples=samples,
    )


def _outputs(model: ir.Model, names: Iterable[str]) -> list[str]:
    """Returns what to watch: a session without outputs does not run, and inputs need none."""
    computed = [name for name in dict.fromkeys(names) if _is_computed(model, name)]
    return computed or [value.name or "" for value in model.graph.outputs]


def _is_computed(model: ir.Model, name: str) -> bool:
    return any(value.name == name for node in model.graph for value in node.outputs)


def _decibels(noise: float) -> float:
    return math.inf if noise == 0 else -10 * math.log10(noise)


def _float_name(floats: ir.Model, tensor: QuantizedTensor) -> str:
    """Returns what a tensor is called in the model without Q and DQ, clamps that they stood for included."""
    values = ir.convenience.create_value_mapping(floats.graph, include_subgraphs=False)
    name = tensor.value.name or ""
    candidates = (f"{name}_clamped", name, tensor.tensor)
    return next(candidate for candidate in candidates if candidate in values)


def _times(model: ir.Model, floats: ir.Model, feed: Feed, *, threads: int) -> dict[str, NodeTime]:
    quantized, plain = kernel_times((model, floats), feed, threads=threads)
    total = sum(time.seconds for time in quantized.values())
    return {
        name: NodeTime(
            seconds=time.seconds,
            share=time.seconds / total if total else 0.0,
            float_seconds=plain[name].seconds if name in plain else None,
        )
        for name, time in quantized.items()
    }
