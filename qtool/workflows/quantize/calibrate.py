"""Calibration: runs a float model over data once and records the statistics of its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from qtool.atomic import check_output, staged
from qtool.calib.collect import Collected, collect
from qtool.calib.datasets.base import Dataset
from qtool.calib.datasets.data_shard import DataShard
from qtool.calib.datasets.text_file import USUAL_TOKENS
from qtool.calib.shard import EVERYTHING, Shard
from qtool.calib.statistics_file import write_statistics
from qtool.fingerprint import data_sha256, file_sha256, graph_fingerprint
from qtool.graph.specs import specs_of
from qtool.plan import Plan
from qtool.progress import Progress
from qtool.reporting.surroundings import versions
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.parts import Parts, needs_parts, parts_of
from qtool.runtime.session import Session, Watcher
from qtool.schemes import Scheme
from qtool.selection import NodeSelection
from qtool.workflows.convert.model_source import ModelSource
from qtool.workflows.quantize.data_request import DataRequest
from qtool.workflows.quantize.holdout_split import HoldoutSplit
from qtool.workflows.quantize.prepared_model import load_prepared

STATISTICS_SUFFIX = ".stats.npz"
# With fewer samples, ranges depend more on the samples than on the model.
_FEW_SAMPLES = 8
NO_HOLDOUT = HoldoutSplit()


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateRequest:
    """The options of a calibration.

    Attributes:
        source: the float model.
        data: the samples.
        output: the statistics file to write; None names it after the model.
        output_dir: folder of an output without a name; None for the model's folder.
        scheme: the quantization scheme that the statistics are for.
        activations_symmetric: whether they are for symmetric activations, which cannot absorb ReLUs; None for the
        preset's choice.
        exact: whether histograms count every value.
        shard: the part of the data to run on; None for all of it.
        threads: threads inside an operator; 0 is one per core.
        force: whether an existing output may be replaced.
    """

    source: ModelSource
    data: DataRequest
    scheme: Scheme
    output: Path | None = None
    output_dir: Path | None = None
    activations_symmetric: bool | None = None
    exact: bool = False
    shard: Shard | None = None
    threads: int = 0
    force: bool = False

    @property
    def destination(self) -> Path:
        """The statistics file to write."""
        part = "" if self.shard is None else f".{self.shard.number}-of-{self.shard.count}"
        folder = self.output_dir or self.source.path.parent
        return self.output or folder / f"{self.source.stem}{part}{STATISTICS_SUFFIX}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSeen:
    """The observed values of one tensor.

    Attributes:
        tensor: its name.
        batches: batches in which it had a value.
        values: how many values it had.
        minimum: the smallest; None when it had none.
        maximum: the largest; None when it had none.
        infinite: how many values were infinite.
    """

    tensor: str
    batches: int
    values: int
    minimum: float | None
    maximum: float | None
    infinite: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateReport:
    """The result of a calibration.

    Attributes:
        output: the statistics file.
        samples: samples seen.
        batches: batches seen.
        tensors: the observed values of each tensor.
        unreached: tensors that never had a value.
    """

    output: Path
    samples: int
    batches: int
    tensors: tuple[TensorSeen, ...]
    unreached: tuple[str, ...]


def calibrate(request: CalibrateRequest, progress: Progress, gathers: Gather | None = None) -> CalibrateReport:
    """Runs the model over the data once and writes one statistics file that every range method can use.

    The files of all shards of the data become that of one pass in ``merge_statistics``. ``gathers`` does what
    ``gather`` does, elsewhere.

    Raises:
        QtoolError: the model, the data or the output cannot be used; see the subclasses.
        FormatError: the model file cannot be read.
        CalibError: the data does not fit the model.
    """
    output = request.destination
    check_output(output, force=request.force)
    scheme = request.scheme
    if request.activations_symmetric is not None:
        scheme = replace(scheme, activations=replace(scheme.activations, symmetric=request.activations_symmetric))
    prepared = load_prepared(request.source, request.data, scheme, NodeSelection(), progress)
    watched = Watched.by(prepared.plan)
    samples = prepared.samples
    shard = DataShard(samples.dataset, request.shard or EVERYTHING)
    collected = (gathers or gather)(
        prepared.model,
        watched,
        samples.dataset,
        samples.data,
        progress,
        shard=shard,
        exact=request.exact,
        threads=request.threads,
    )
    origin = statistics_origin(prepared.model, watched, request, shard)
    with staged(output) as path:
        write_statistics(path, collected, origin, request.shard)
    return report_of(output, collected)


def report_of(output: Path, collected: Collected) -> CalibrateReport:
    """Returns the report on statistics that are written to ``output``."""
    return CalibrateReport(
        output=output,
        samples=collected.samples,
        batches=collected.batches,
        tensors=tuple(
            TensorSeen(
                tensor=name,
                batches=seen.batches,
                values=seen.values,
                minimum=seen.minimum if seen.batches else None,
                maximum=seen.maximum if seen.batches else None,
                infinite=seen.infinite,
            )
            for name, seen in collected.statistics.items()
        ),
        unreached=collected.unreached,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """The tensors to observe.

    Attributes:
        tensors: their names.
        channel_axes: the axis whose channels are summed, for those that layers read.
    """

    tensors: tuple[str, ...]
    channel_axes: Mapping[str, int]

    @staticmethod
    def by(plan: Plan) -> Watched:
        """Returns the tensors that ``plan`` needs."""
        return Watched(tensors=plan.observed, channel_axes=plan.channel_axes)


class Gather(Protocol):
    """What ``gather`` is."""

    def __call__(
        self,
        model: ir.Model,
        watched: Watched,
        dataset: Dataset,
        data: DataRequest,
        progress: Progress,
        *,
        holdout: HoldoutSplit = NO_HOLDOUT,
        shard: DataShard | None = None,
        exact: bool = False,
        threads: int = 0,
    ) -> Collected:
        """Runs a prepared model over the data once; see ``gather``."""
        ...


def gather(
    model: ir.Model,
    watched: Watched,
    dataset: Dataset,
    data: DataRequest,
    progress: Progress,
    *,
    holdout: HoldoutSplit = NO_HOLDOUT,
    shard: DataShard | None = None,
    exact: bool = False,
    threads: int = 0,
) -> Collected:
    """Runs a prepared model over the data once, without the holdout; does not run where nothing is observed.

    With ``shard``, which is of ``dataset``, it runs over that, which may have no sample.

    Raises:
        CalibError: the data does not fit the model, or NaN reaches an output.
    """
    if not watched.tensors:
        return Collected(statistics={}, samples=0, batches=0)
    outputs = specs_of(model.graph.outputs)
    compared = float_outputs(model)
    is_part = shard is not None and not shard.is_everything
    seen = tuple(dict.fromkeys((*watched.tensors, *compared)))
    with watching(model, seen) as graph, _opened(graph, threads) as session:
        feeds = data.feeds(shard or dataset, session.inputs, outputs, remark=progress.note)
        total = data.available(dataset) if shard is None else shard.samples
        with progress.task("calibrating", total) as advance:
            collected = collect(
                session if isinstance(session, Parts) else Watcher(session),
                holdout.used(feeds),
                watched.tensors,
                channel_axes=watched.channel_axes,
                exact=exact,
                advance=advance,
                outputs=compared,
                numbers=holdout.numbers() if shard is None else shard.numbers,
                may_be_empty=is_part,
            )
    tell_of_few(collected.samples, progress, is_part=is_part)
    return collected


def tell_of_few(samples: int, progress: Progress, *, is_part: bool) -> None:
    """Remarks that there are few samples, or that none of them falls to a part of the data."""
    if is_part and not samples:
        progress.note("no batch falls to this shard: its statistics are empty")
    elif samples < _FEW_SAMPLES and not is_part:
        progress.note(f"only {samples} samples: ranges need a few dozen representative samples")


@contextmanager
def _opened(model: ir.Model, threads: int) -> Iterator[Session | Parts]:
    """Yields a session, or parts of a graph that is too large to be held in memory."""
    if needs_parts(model):
        yield parts_of(model)
        return
    with open_graph(model, threads=threads) as session:
        yield session


def float_outputs(model: ir.Model) -> tuple[str, ...]:
    """Returns the float outputs of a graph, which must not be NaN."""
    return tuple(
        value.name or ""
        for value in model.graph.outputs
        if isinstance(value.type, ir.TensorType) and value.type.dtype.is_floating_point()
    )


def statistics_origin(model: ir.Model, watched: Watched, request: CalibrateRequest, shard: DataShard) -> dict[str, str]:
    """Returns what the statistics are of; all but ``seen``, which tells the samples, is the same for every shard."""
    data = request.data
    digests = [data_sha256(source) for source in data.sources]
    tokenizer = data.tokenizer
    tensors = "\x1f".join(f"{name} {watched.channel_axes.get(name)}" for name in watched.tensors)
    known = {
        "data": None if None in digests else " ".join(map(str, digests)),
        "limit": None if data.limit is None else str(data.limit),
        "preprocess": data.preprocess,
        "tokenizer": None if tokenizer is None else file_sha256(tokenizer),
        "tokens": None if tokenizer is None or data.text is None else str(data.text.tokens or USUAL_TOKENS),
    }
    return {
        "model": graph_fingerprint(model),
        "tensors": hashlib.sha256(tensors.encode()).hexdigest(),
        "batch size": str(shard.batch_size),
        "histograms": "exact" if request.exact else "sampled",
        "onnxruntime": versions()["onnxruntime"],
        "seen": str(shard.seen),
        **{key: value for key, value in known.items() if value is not None},
    }
