"""The float model that calibrate, quantize and sensitivity start from: loaded, prepared and planned once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.analysis.fed_sizes import fed_sizes
from qtool.calib.datasets.base import Dataset
from qtool.calib.ranges import RangeMethod
from qtool.calib.specs import Feed, TensorSpec
from qtool.calib.statistics import TensorStatistics
from qtool.graph.collection_pause import collection_paused
from qtool.graph.specs import model_specs
from qtool.graph.tensor_sizes import TensorSize
from qtool.plan import Plan
from qtool.planning import build_plan
from qtool.progress import Progress
from qtool.quantizer import unfit_tensors
from qtool.schemes import Scheme
from qtool.selection import NodeSelection
from qtool.workflows.convert.model_source import ModelSource
from qtool.workflows.convert.opsets import to_opset
from qtool.workflows.quantize.data_request import USUAL_BATCH_SIZE, DataRequest
from qtool.workflows.quantize.prepare import prepare
from qtool.workflows.quantize.quantized_candidates import QuantizedCandidates
from qtool.workflows.tune.activation_memory import ActivationMemory

# The first with 8-bit floats in QuantizeLinear and DequantizeLinear.
OPSET_WITH_FLOAT8 = 19
_IR_VERSION_WITH_FLOAT8 = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationData:
    """The samples that a model is calibrated on.

    Attributes:
        dataset: the opened data.
        data: the request for it, with a batch size that the memory of the activations allows.
        sample: one sample.
        sizes: of the model's tensors, for that sample, as far as they are known before it runs.
        memory: the memory of the activations of one sample.
    """

    dataset: Dataset
    data: DataRequest
    sample: Feed
    sizes: Mapping[str, TensorSize]
    memory: ActivationMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedModel:
    """A float model in the form that is quantized.

    Attributes:
        original: the model as loaded; every node has a name, which all later steps keep.
        model: the model after ``prepare``.
        plan: the largest plan, with no tensor unfit and no node kept in float.
        calibration: the samples; None without data.
    """

    original: ir.Model
    model: ir.Model
    plan: Plan
    calibration: CalibrationData | None

    @property
    def samples(self) -> CalibrationData:
        """The samples, where there have to be some."""
        if self.calibration is None:
            raise AssertionError("the model was loaded without data")
        return self.calibration

    @property
    def interface(self) -> tuple[Sequence[TensorSpec], Sequence[TensorSpec]]:
        """The inputs that data fills, and the outputs."""
        return model_specs(self.original)


def load_prepared(
    source: ModelSource,
    data: DataRequest | None,
    scheme: Scheme,
    selection: NodeSelection,
    progress: Progress,
    *,
    may_be_empty: bool = False,
    pause: ExitStack | None = None,
) -> PreparedModel:
    """Loads, prepares and plans a model, and opens its data.

    Where the graph has very many nodes, ``pause`` is where the collection of garbage is paused from then on.

    Raises:
        QtoolError: the model cannot be used or quantized, or a pattern matches nothing.
        FormatError: the model file cannot be read.
        CalibError: the data cannot be read, or does not fit the model.
    """
    dataset = None if data is None else data.open()
    original = source.load(progress, dataset=dataset)
    if pause is not None:
        pause.enter_context(collection_paused(len(original.graph)))
    common.NameFixPass()(original)
    model = prepare(original.clone(), integers_between_layers=scheme.integers_between_layers)
    if scheme.float8 and model.opset_imports.get("", 0) < OPSET_WITH_FLOAT8:
        model = to_opset(model, OPSET_WITH_FLOAT8)
        model.ir_version = max(model.ir_version, _IR_VERSION_WITH_FLOAT8)
    # Patterns that match nothing are refused before anything runs.
    plan = build_plan(model, scheme, selection, may_be_empty=may_be_empty)
    calibration = None if dataset is None or data is None else calibration_data(original, model, dataset, data)
    return PreparedModel(original=original, model=model, plan=plan, calibration=calibration)


def calibrated_candidates(
    model: ir.Model,
    plan: Plan,
    statistics: Mapping[str, TensorStatistics],
    *,
    scheme: Scheme,
    selection: NodeSelection,
    method: RangeMethod,
    bias_correction: bool = True,
) -> QuantizedCandidates:
    """Returns the candidates of a prepared model, without the tensors that its statistics show to be unfit."""
    sources = {activation.source for activation in plan.activations.values()}
    needed = {name: seen for name, seen in statistics.items() if name in sources}
    return QuantizedCandidates(
        model=model,
        scheme=scheme,
        selection=selection,
        unfit=unfit_tensors(model.graph, needed),
        statistics=statistics,
        method=method,
        bias_correction=bias_correction,
    )


def single_sample(original: ir.Model, dataset: Dataset, data: DataRequest) -> Feed:
    """Returns one sample, in a batch of its own where the model takes that.

    Raises:
        CalibError: the data does not fit the model.
    """
    single = data if data.batch_size is not None else replace(data, batch_size=1)
    return next(single.feeds(dataset, *model_specs(original)))


def calibration_data(original: ir.Model, model: ir.Model, dataset: Dataset, data: DataRequest) -> CalibrationData:
    """Returns the samples with the batch size and memory that one of them needs in ``model``, a form of ``original``.

    Raises:
        CalibError: the data does not fit the model.
    """
    sample = single_sample(original, dataset, data)
    sizes = fed_sizes(model, sample)
    memory = ActivationMemory.of(model, sample, sizes)
    sized = replace(data, usual_batch_size=memory.batch_size(USUAL_BATCH_SIZE))
    return CalibrationData(dataset=dataset, data=sized, sample=sample, sizes=sizes, memory=memory)
