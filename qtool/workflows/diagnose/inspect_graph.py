"""Analyses a graph: memory of activations, the flow of a tensor, multiply-adds, integer regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.analysis.lifetimes import MemoryUse, memory_use
from qtool.analysis.node_work import Work, work_of
from qtool.analysis.tensor_flow import TensorFlow, tensor_flow
from qtool.backends.onnxruntime_cpu.coverage import optimized_nodes
from qtool.backends.onnxruntime_cpu.integer_regions import Partition, partition_of
from qtool.calib.specs import Feed
from qtool.errors import InputError, UsageError
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.graph.constants import constant_array
from qtool.graph.specs import model_specs
from qtool.graph.tensor_sizes import TensorSize
from qtool.progress import Progress
from qtool.scheduling.graph_tasks import lowest_peak
from qtool.workflows.diagnose.graph_facts import fix_free_dims
from qtool.workflows.diagnose.graph_names import find
from qtool.workflows.diagnose.measured_sizes import sizes_of
from qtool.workflows.diagnose.tensor_range import TensorRange, range_in_data, range_in_statistics, range_of_constant
from qtool.workflows.diagnose.verify import onnx_path
from qtool.workflows.quantize.data_request import DataRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisRequest:
    """The options of an analysis.

    Attributes:
        model: an ONNX file.
        input_shapes: lengths for free dimensions; without them a free first one is one sample.
        data: samples to measure sizes and ranges on.
        statistics: a file of ``qtool calibrate``, which has ranges.
        memory: whether to follow the activations.
        flow: a tensor to follow, or the end of its name.
        macs: whether to count multiply-adds.
        partition: whether to find out what runs on integers.
    """

    model: Path
    input_shapes: Mapping[str, tuple[int | str, ...]] | None = None
    data: DataRequest | None = None
    statistics: Path | None = None
    memory: bool = False
    flow: str | None = None
    macs: bool = False
    partition: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The result of an analysis; None for parts that were not requested.

    Attributes:
        lengths: the lengths that free dimensions were given, by name; those of the samples where there are some.
        measured: whether sizes were measured on samples.
        memory: how long every activation is in memory.
        lowest_peak: the peak of live activations in the best order of the nodes that was found, in bytes.
        flow: where the tensor comes from and goes.
        values: the range of that tensor; None too where nothing tells it.
        work: the multiply-adds of every node.
        partition: what runs on integers.
    """

    lengths: Mapping[str, int]
    measured: bool
    memory: MemoryUse | None
    lowest_peak: int | None
    flow: TensorFlow | None
    values: TensorRange | None
    work: Work | None
    partition: Partition | None


def analyse(request: AnalysisRequest, progress: Progress) -> Analysis:
    """Reads a graph, and runs it where sizes or ranges are to be measured.

    Raises:
        FormatError: the file cannot be read.
        UsageError: it is not an ONNX graph, or a shape does not fit it.
        InputError: it has no such tensor.
        CalibError: the samples or the statistics do not fit.
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    model = OnnxFile().read(onnx_path(request.model))
    common.NameFixPass()(model)
    original = model.clone()
    feed = None if request.data is None else _first_feed(model, request.data)
    shapes = request.input_shapes if feed is None else {name: array.shape for name, array in feed.items()}
    lengths = fix_free_dims(model, shapes)
    sizes = sizes_of(model, feed, progress)
    work = work_of(model, sizes)
    flow = values = None
    if request.flow is not None:
        value = _tensor(model, request.flow)
        flow = tensor_flow(model.graph, value, sizes)
        values = _values(request, original, value, progress)
    return Analysis(
        lengths=lengths,
        measured=feed is not None,
        memory=memory_use(model.graph, sizes) if request.memory else None,
        lowest_peak=lowest_peak(model.graph, sizes) if request.memory else None,
        flow=flow,
        values=values,
        work=work if request.macs else None,
        partition=_partition(original, sizes, lengths, work) if request.partition else None,
    )


def _first_feed(model: ir.Model, data: DataRequest) -> Feed:
    inputs, outputs = model_specs(model)
    alone = replace(data, batch_size=data.batch_size or 1)
    return next(iter(alone.feeds(alone.open(), inputs, outputs)))


def _tensor(model: ir.Model, name: str) -> ir.Value:
    found = find(model, {}, name)
    if found.tensor is None and found.node is not None:
        return found.node.outputs[0]
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    if found.tensor not in values:
        raise InputError(f"the graph itself has no tensor '{name}'", fix="name one that is in no branch and no loop")
    return values[found.tensor]


def _values(request: AnalysisRequest, model: ir.Model, value: ir.Value, progress: Progress) -> TensorRange | None:
    name = value.name or ""
    stored = constant_array(value)
    if stored is not None:
        return range_of_constant(stored)
    if request.data is not None:
        return range_in_data(model, name, request.data, progress)
    if request.statistics is not None:
        return range_in_statistics(request.statistics, name)
    return None


def _partition(model: ir.Model, sizes: Mapping[str, TensorSize], lengths: Mapping[str, int], work: Work) -> Partition:
    multiply_adds = {node.node: node.multiply_adds or 0 for node in work.nodes}
    with optimized_nodes(model) as kept:
        graph = next((node.graph for node in kept.values()), None)
        if not isinstance(graph, ir.Graph):
            raise UsageError("onnxruntime leaves nothing of this graph to run", fix="look at it with `qtool inspect`")
        return partition_of(graph, sizes, lengths, multiply_adds)
