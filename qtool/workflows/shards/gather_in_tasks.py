"""Calibration whose batches run as tasks of a cluster, with the statistics of one pass in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from qtool.calib.collect import Collected, Runner, collect
from qtool.calib.datasets.base import Dataset
from qtool.calib.datasets.data_shard import DataShard, Seen
from qtool.calib.errors import CalibError
from qtool.calib.specs import Feed
from qtool.calib.statistics_file import StoredStatistics, statistics_bytes, statistics_from
from qtool.cluster.work import IN_THIS_PROCESS, Workers, results, threads_of
from qtool.fingerprint import graph_fingerprint
from qtool.graph.specs import specs_of
from qtool.progress import Progress
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.packed_model import PackedModel
from qtool.runtime.session import Watcher
from qtool.workflows.quantize.calibrate import NO_HOLDOUT, Gather, Watched, float_outputs, gather, tell_of_few
from qtool.workflows.quantize.data_request import DataRequest
from qtool.workflows.quantize.holdout_split import HoldoutSplit
from qtool.workflows.shards.merge_statistics import SEEN, joined

# A task's statistics are read and joined here, which should take little of the time that it ran.
_MOST_BATCHES = 32
# So many tasks of a known number of batches, so that workers end at about the same time.
_TASKS = 128
_USUAL_BATCHES = 8
_MOST_TASK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """A task: batches that follow each other.

    Attributes:
        feeds: their arrays.
        numbers: their numbers in the data.
        seen: their hash.
    """

    feeds: tuple[Feed, ...]
    numbers: tuple[int, ...]
    seen: Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationWork:
    """A model, and what to observe of it.

    Attributes:
        model: the prepared model.
        watched: the tensors to observe.
        compared: its float outputs, which must not be NaN.
        exact: whether histograms count every value.
        threads: threads inside an operator.
    """

    model: PackedModel
    watched: Watched
    compared: tuple[str, ...]
    exact: bool
    threads: int

    @contextmanager
    def opened(self) -> Iterator[Callable[[Batches], bytes]]:
        """Opens the model, and yields what returns the statistics of batches as the content of a file."""
        seen = tuple(dict.fromkeys((*self.watched.tensors, *self.compared)))
        model = self.model.unpacked()
        with watching(model, seen) as graph, open_graph(graph, threads=self.threads) as session:
            yield partial(self._statistics, Watcher(session))

    def _statistics(self, runner: Runner, batches: Batches) -> bytes:
        collected = collect(
            runner,
            batches.feeds,
            self.watched.tensors,
            channel_axes=self.watched.channel_axes,
            exact=self.exact,
            outputs=self.compared,
            numbers=batches.numbers,
        )
        return statistics_bytes(collected, {SEEN: str(batches.seen)}, compressed=False)


def gather_by(workers: Workers) -> Gather:
    """Returns what gathers statistics: in one pass in this process, which is faster there, or in tasks of others."""
    return gather if workers is IN_THIS_PROCESS else partial(gather_in_tasks, workers)


def gather_in_tasks(
    workers: Workers,
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
    """Returns what ``gather`` does, to the last bit; what was done of it before an interruption is not done again.

    Only this process reads the data.

    Raises:
        CalibError: the data does not fit the model, or NaN reaches an output.
        QtoolError: the workers cannot do it.
    """
    part = DataShard(dataset) if shard is None else shard
    work = CalibrationWork(
        model=PackedModel.of(model),
        watched=watched,
        compared=float_outputs(model),
        exact=exact,
        threads=threads_of(workers, threads),
    )
    total = StoredStatistics(
        collected=collect(_Unused(), (), watched.tensors, channel_axes=watched.channel_axes, may_be_empty=True),
        origin={SEEN: str(Seen())},
    )
    if not watched.tensors:
        return total.collected
    # The file sees the data as the pass in one process does.
    with watching(model, watched.tensors) as graph, open_graph(graph, threads=1, level="none") as session:
        inputs = session.inputs
    feeds = data.feeds(part, inputs, specs_of(model.graph.outputs), remark=progress.note)
    tasks = ((str(batches.seen), batches) for batches in grouped(feeds, part, holdout))
    kept = workers.kept(partial(_key, model, work))
    with progress.task(f"calibrating on {workers.count} workers", part.samples) as advance:
        for key, content in results(workers, work, tasks, kept=kept, accepts=_is_whole):
            found = statistics_from(content, f"the result of the batches {key[:8]}")
            total = joined(total, found)
            advance(found.collected.samples)
    if total.collected.batches == 0 and part.is_everything:
        raise CalibError("the data has no samples", fix="give at least a few dozen representative samples")
    tell_of_few(total.collected.samples, progress, is_part=not part.is_everything)
    return total.collected


def grouped(feeds: Iterable[Feed], shard: DataShard, holdout: HoldoutSplit = NO_HOLDOUT) -> Iterator[Batches]:
    """Yields the batches of ``shard`` in groups, which do not depend on who is to run them; none of those held out."""
    batches = None if shard.samples is None else -(-shard.samples // shard.batch_size)
    most = _USUAL_BATCHES if batches is None else min(max(batches // _TASKS, 1), _MOST_BATCHES)
    held: list[Feed] = []
    numbers: list[int] = []
    nbytes, seen, before = 0, Seen(), shard.seen.copy()
    for feed, number in zip(feeds, shard.numbers, strict=False):
        own, before = shard.seen.without(before), shard.seen.copy()
        if holdout.holds_out(number):
            continue
        held.append(feed)
        numbers.append(number)
        seen.merge(own)
        nbytes += sum(array.nbytes for array in feed.values())
        if len(held) == most or nbytes >= _MOST_TASK_BYTES:
            yield Batches(feeds=tuple(held), numbers=tuple(numbers), seen=seen)
            held, numbers, nbytes, seen = [], [], 0, Seen()
    if held:
        yield Batches(feeds=tuple(held), numbers=tuple(numbers), seen=seen)


class _Unused:
    """Stands for a model that nothing runs."""

    def run(self, feeds: Feed) -> Feed:
        """Returns nothing."""
        return {}


def _is_whole(content: bytes) -> bool:
    try:
        statistics_from(content, "kept")
    except CalibError:
        return False
    return True


def _key(model: ir.Model, work: CalibrationWork) -> str:
    """Tells a calibration from those with other results for the same batches."""
    watched = [(name, work.watched.channel_axes.get(name)) for name in work.watched.tensors]
    digest = hashlib.sha256(repr((watched, work.exact, work.threads)).encode())
    return f"calibration {graph_fingerprint(model)} {digest.hexdigest()}"
