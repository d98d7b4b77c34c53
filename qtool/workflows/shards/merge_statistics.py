"""Joins the statistics of all shards of the data into those of one pass over it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qtool.atomic import check_output, staged
from qtool.calib.collect import Collected
from qtool.calib.datasets.data_shard import Seen
from qtool.calib.shard import Shard
from qtool.calib.statistics import TensorStatistics
from qtool.calib.statistics_file import StoredStatistics, read_statistics, write_statistics
from qtool.errors import InputError, UsageError
from qtool.progress import Progress
from qtool.workflows.quantize.calibrate import CalibrateReport, report_of

SEEN = "seen"
_OF_ANOTHER = {"model": "of another model", "data": "of other data", "tensors": "of other tensors"}
_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRequest:
    """The options of a merge of statistics.

    Attributes:
        parts: the files of all shards, in any order.
        output: the statistics file to write.
        force: whether an existing output may be replaced.
    """

    parts: tuple[Path, ...]
    output: Path
    force: bool = False


def merge_statistics(request: MergeRequest, progress: Progress) -> CalibrateReport:
    """Writes the statistics file that one pass over all of the data would have written.

    Raises:
        UsageError: there are no files.
        InputError: a shard is missing, doubled, or of something else than the others.
        CalibError: a file cannot be read, or there was no sample.
        OutputError: the output cannot be written.
    """
    if not request.parts:
        raise UsageError("no statistics are given", fix="name the files of all shards: --merge part*.stats.npz")
    check_output(request.output, force=request.force)
    shards, count = _shards(request.parts)
    merged: StoredStatistics | None = None
    with progress.task("merging", count) as advance:
        for number in range(1, count + 1):
            part = read_statistics(shards[number])
            merged = part if merged is None else joined(merged, part)
            advance(1)
    if merged is None or merged.collected.samples == 0:
        raise InputError("none of the shards has a sample", fix="give at least a few dozen representative samples")
    with staged(request.output) as path:
        write_statistics(path, merged.collected, merged.origin)
    return report_of(request.output, merged.collected)


def joined(first: StoredStatistics, second: StoredStatistics) -> StoredStatistics:
    """Returns the statistics of two parts of the same data as one; those of ``first`` are changed in place."""
    statistics: dict[str, TensorStatistics] = dict(first.collected.statistics)
    for name, seen in statistics.items():
        seen.merge(second.collected.statistics[name])
    hashed = Seen.parse(first.origin[SEEN])
    hashed.merge(Seen.parse(second.origin[SEEN]))
    return StoredStatistics(
        collected=Collected(
            statistics=statistics,
            samples=first.collected.samples + second.collected.samples,
            batches=first.collected.batches + second.collected.batches,
        ),
        origin={**first.origin, SEEN: str(hashed)},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    path: Path
    shard: Shard
    origin: Mapping[str, str]
    tensors: tuple[str, ...]

    @property
    def kind(self) -> tuple[object, ...]:
        """What has to be the same for all shards."""
        same = {key: value for key, value in self.origin.items() if key != SEEN}
        return self.shard.count, tuple(sorted(same.items())), self.tensors


def _shards(paths: Sequence[Path]) -> tuple[dict[int, Path], int]:
    """Returns the files by the number of their shard, and how many shards there are; holds one file at a time."""
    parts = [_part(path) for path in paths]
    # Where one is foreign, the others tell which.
    usual = Counter(part.kind for part in parts).most_common(1)[0][0]
    model = next(part for part in parts if part.kind == usual)
    for part in parts:
        if part.kind != usual:
            raise InputError(
                f"{part.path} {_difference(part, model)} {model.path}",
                fix="leave it out, or make all shards with the same options",
            )
    count, found = model.shard.count, dict[int, Path]()
    for part in parts:
        if part.shard.number in found:
            raise InputError(
                f"{part.path} and {found[part.shard.number]} both hold shard {part.shard}", fix="give each shard once"
            )
        found[part.shard.number] = part.path
    missing = [str(Shard(number, count)) for number in range(1, count + 1) if number not in found]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
        raise InputError(
            f"{'shards are' if len(missing) > 1 else 'a shard is'} missing: {shown}",
            fix=f"make what is missing, such as `qtool calibrate ... --shard {missing[0]}`, and give all {count} files",
        )
    return found, count


def _part(path: Path) -> _Part:
    stored = read_statistics(path)
    if stored.shard is None:
        raise InputError(
            f"{path} is no shard: it holds the statistics of all of its data",
            fix="use it as it is, or merge files that `qtool calibrate --shard` made",
        )
    if SEEN not in stored.origin:
        raise InputError(f"{path} does not tell which samples it is of", fix="make it again with `qtool calibrate`")
    return _Part(path=path, shard=stored.shard, origin=stored.origin, tensors=tuple(stored.collected.statistics))


def _difference(part: _Part, model: _Part) -> str:
    """Says what is different about ``part``, up to the name of ``model``."""
    for key in dict.fromkeys((*_OF_ANOTHER, *model.origin, *part.origin)):
        one, other = part.origin.get(key), model.origin.get(key)
        if key != SEEN and one != other:
            if key in _OF_ANOTHER:
                return f"is {_OF_ANOTHER[key]} than"
            if one is None or other is None:
                return f"was made with{'out' if one is None else ''} {key}{f' {one}' if one else ''}, other than"
            return f"was made with {key} {one}, not {other} as"
    if part.shard.count != model.shard.count:
        return f"is shard {part.shard}, one of {part.shard.count} and not of {model.shard.count} as"
    return "is of other tensors than"
