"""Tasks in one process: their results, what is kept of them, and what becomes of a run that was ended."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool.calib.errors import CalibError
from qtool.calib.statistics import TensorStatistics
from qtool.cluster.kept_results import results_kept
from qtool.cluster.ray_cluster import local_count
from qtool.cluster.work import IN_THIS_PROCESS, InThisProcess, Work, results
from qtool.errors import InputError, UsageError
from qtool.workflows.shards import gather_in_tasks as module


@dataclass
class _Squares:
    """Squares numbers, and remembers which."""

    done: list[int] = field(default_factory=list)

    @contextmanager
    def opened(self) -> Iterator[Callable[[int], bytes]]:
        yield self._square

    def _square(self, task: int) -> bytes:
        self.done.append(task)
        return str(task * task).encode()


class _Faltering(InThisProcess):
    """Is interrupted after so many tasks, which come in another order than they were asked for."""

    count = 3

    def __init__(self, tasks: int | None = None) -> None:
        self.left = tasks
        self.done = 0

    def map(self, work: Work[Any], tasks: Iterable[Any]) -> Iterator[tuple[int, bytes]]:
        with work.opened() as run:
            for number, task in reversed(list(enumerate(tasks))):
                if self.left is not None and self.done == self.left:
                    raise KeyboardInterrupt
                # As another process would get them.
                result = run(pickle.loads(pickle.dumps(task)))
                self.done += 1
                yield number, result


def _keyed(*numbers: int) -> list[tuple[str, int]]:
    return [(str(number), number) for number in numbers]


def test_every_task_has_its_result() -> None:
    found = dict(results(IN_THIS_PROCESS, _Squares(), _keyed(3, 1, 2)))
    assert found == {"3": b"9", "1": b"1", "2": b"4"}


def test_what_is_kept_is_not_done_again_and_goes_with_a_run_that_ends(tmp_path: Path) -> None:
    place = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt), results_kept(place) as kept:
        for _ in results(_Faltering(2), _Squares(), _keyed(1, 2, 3, 4), kept=kept("squares")):
            pass
    (folder,) = place.iterdir()
    assert len(list(folder.iterdir())) == 2
    work = _Squares()
    with results_kept(place) as kept:
        found = dict(results(IN_THIS_PROCESS, work, _keyed(1, 2, 3, 4), kept=kept("squares")))
    assert found == {"1": b"1", "2": b"4", "3": b"9", "4": b"16"}
    assert work.done == [1, 2]
    assert not list(place.iterdir())


def test_other_work_finds_nothing_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), results_kept(tmp_path) as kept:
        list(results(_Faltering(2), _Squares(), _keyed(1, 2, 3), kept=kept("squares")))
    with results_kept(tmp_path) as kept:
        assert kept("squares").read("3") == b"9"
        assert kept("cubes").read("3") is None


def test_damaged_results_are_made_again(tmp_path: Path) -> None:
    work = _Squares()
    with results_kept(tmp_path) as place:
        kept = place("squares")
        kept.write("2", b"torn")
        found = dict(results(IN_THIS_PROCESS, work, _keyed(2, 5), kept=kept, accepts=bytes.isdigit))
    assert found == {"2": b"4", "5": b"25"}
    assert work.done == [2, 5]


def test_calibration_in_tasks_is_one_pass_and_goes_on_where_it_was_interrupted(
    run: Any, model: Path, one_pass: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    expected = one_pass()
    workers = _Faltering(4)

    @contextmanager
    def given(*_: object, **__: object) -> Iterator[_Faltering]:
        yield workers

    monkeypatch.setattr("qtool.cluster.ray_cluster.ray_workers", given)
    words = ("calibrate", model, "--calib-data", "data.npz", "--cluster", "local:3", "-o", "all.npz")
    assert run(*words).code != 0
    assert not Path("all.npz").exists()
    kept = [path for path in cache.rglob("*") if path.is_file()]
    assert len(kept) == 4
    kept[0].write_bytes(kept[0].read_bytes()[:500])
    workers = _Faltering()
    outcome = run(*words)
    assert outcome.code == 0, outcome.err
    # Ten batches, one a task: three results were kept whole.
    assert workers.done == 7
    assert Path("all.npz").read_bytes() == expected
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_shards_may_run_in_tasks_too(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("calibrate", model, "--calib-data", "data.npz", "--shard", "2/3")
    assert run(*words, "-o", "one.npz").code == 0

    @contextmanager
    def given(*_: object, **__: object) -> Iterator[_Faltering]:
        yield _Faltering()

    monkeypatch.setattr("qtool.cluster.ray_cluster.ray_workers", given)
    assert run(*words, "-o", "tasks.npz", "--cluster", "local").code == 0
    assert Path("tasks.npz").read_bytes() == Path("one.npz").read_bytes()


def test_errors_and_statistics_arrive_as_they_were() -> None:
    for error in (CalibError("it is so", fix="do this"), InputError("it is so", fix="do this")):
        arrived = pickle.loads(pickle.dumps(error))
        assert type(arrived) is type(error)
        assert (arrived.problem, arrived.fix, str(arrived)) == (error.problem, error.fix, str(error))
    seen = TensorStatistics(channel_axis=1)
    values = np.random.default_rng(0).normal(0, 1, (5, 4)).astype(np.float32)
    assert seen.add(values, values, samples=5)
    assert seen.add_channels(values)
    message = pickle.dumps(seen)
    assert len(message) < 4096
    arrived = pickle.loads(message)
    assert np.array_equal(arrived.counts, seen.counts)
    assert (arrived.minimum, arrived.extreme_sums, arrived.channel_sums) == (
        seen.minimum,
        seen.extreme_sums,
        seen.channel_sums,
    )


def test_places_are_read() -> None:
    assert local_count("local:3") == 3
    assert (local_count("local") or 0) >= 1
    assert local_count("10.0.0.1:6379") is None
    for text in ("local:", "local:0", "local:-1", "local:two"):
        with pytest.raises(UsageError, match="no number of workers"):
            local_count(text)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("127.0.0.1:1", "nothing answers at 127.0.0.1:1"),
        ("somewhere", "--cluster somewhere is no place"),
        ("ray://127.0.0.1:1", "is no place"),
        ("local:0", "no number of workers"),
    ],
)
def test_a_place_that_is_none_is_refused_at_once(run: Any, model: Path, place: str, problem: str) -> None:
    outcome = run("calibrate", model, "--calib-data", "data.npz", "--cluster", place)
    assert outcome.code == 2
    assert problem in outcome.err


def test_without_ray_the_option_says_what_to_install(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = run("calibrate", model, "--calib-data", "data.npz", "--cluster", "local")
    assert outcome.code == 2
    assert "pip install 'qtool-onnx[distributed]'" in outcome.err
    assert not list(Path().glob("*.stats.npz"))


def test_tasks_are_small_and_the_same_whoever_runs_them(model: Path) -> None:
    from qtool.calib.datasets.array_file import ArrayFile
    from qtool.calib.datasets.data_shard import DataShard
    from qtool.calib.specs import TensorSpec

    spec = TensorSpec("image", np.dtype(np.float32), ("n", 3, 8, 8))

    def tasks() -> list[module.Batches]:
        shard = DataShard(ArrayFile(model.parent / "data.npz"))
        return list(module.grouped(shard.feeds([spec], batch_size=7), shard))

    first, second = tasks(), tasks()
    assert [task.numbers for task in first] == [(number,) for number in range(6)]
    assert [str(task.seen) for task in first] == [str(task.seen) for task in second]
    assert len({str(task.seen) for task in first}) == 6
