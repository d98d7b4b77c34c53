"""Real workers of Ray, on two nodes: what they return, and what becomes of it when one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool.cluster.ray_cluster import ray_workers
from qtool.errors import InputError

pytestmark = pytest.mark.distributed

_KILLING = """
import os
import signal
import time
from pathlib import Path

import numpy as np


def kill_a_worker():
    for _ in range(600):
        for folder in Path("/proc").glob("[0-9]*"):
            if (folder / "cmdline").read_bytes().startswith(b"ray::_run"):
                os.kill(int(folder.name), signal.SIGKILL)
                Path("killed").write_text(folder.name)
                return
        time.sleep(0.01)


def feeds():
    for number, image in enumerate(np.load("data.npz")["image"]):
        # The first task, of eight batches, is being done by now.
        if number == 36 and not Path("killed").exists():
            kill_a_worker()
        yield {"image": image[None]}
"""


@contextmanager
def _killer(cache: Path, after: Sequence[int]) -> Iterator[list[int]]:
    """Kills a worker that is doing a task whenever one of so many results is kept; yields how many were by then."""
    done: list[int] = []
    over = threading.Event()

    def kept() -> int:
        return sum(path.is_file() for path in (cache / "qtool").rglob("*"))

    def kill() -> bool:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "cmdline").read_bytes().startswith(b"ray::_run"):
                    os.kill(int(folder.name), signal.SIGKILL)
                    return True
            except OSError:
                continue
        return False

    def watch() -> None:
        for least in after:
            while not over.wait(0.005) and not ((found := kept()) >= least and kill()):
                pass
            if not over.is_set():
                done.append(found)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


def _local_work(scratch: Path, *, seconds: float = 0.0, deadly: int | None = None, always: bool = False) -> Any:
    """Returns work that squares numbers; the process that gets ``deadly`` dies, once or always."""

    class Squares:
        @contextmanager
        def opened(self) -> Iterator[Callable[[int], bytes]]:
            (scratch / f"opened-{os.getpid()}").touch()
            yield self.square

        def square(self, task: int) -> bytes:
            time.sleep(seconds)
            flag = scratch / "died"
            if task == deadly and (always or not flag.exists()):
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return str(task * task).encode()

    return Squares()


def test_calibration_on_two_nodes_writes_the_bytes_of_one_process(
    run: Any, two_nodes: Any, model: Path, one_pass: Callable[[], bytes]
) -> None:
    outcome = run("calibrate", model, "--calib-data", "data.npz", "--cluster", two_nodes.address, "-o", "all.npz")
    assert outcome.code == 0, outcome.err
    assert "2 workers of 1 thread" in outcome.err
    assert Path("all.npz").read_bytes() == one_pass()


def test_sensitivity_on_two_nodes_writes_the_bytes_of_one_process(run: Any, two_nodes: Any, model: Path) -> None:
    words = ("sensitivity", model, "--calib-data", "data.npz", "--method", "auto")
    assert run(*words, "-o", "one.json").code == 0
    outcome = run(*words, "--cluster", two_nodes.address, "-o", "two.json")
    assert outcome.code == 0, outcome.err
    assert Path("two.json").read_bytes() == Path("one.json").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds workers by /proc")
def test_quantization_writes_the_same_bytes_on_two_nodes_though_workers_are_killed(
    run: Any, two_nodes: Any, deep_model: Path, cache: Path
) -> None:
    words = ["quantize", deep_model, "--calib-data", "data.npz", "--machine-profile", "shipped", "--smallest"]
    words += ["--min-sqnr", "45"]
    outcome = run(*words, "-o", "one.onnx")
    assert outcome.code == 0, outcome.err
    # While batches, tensors and layers are measured.
    with _killer(cache, after=(2, 16, 35)) as killed:
        outcome = run(*words, "--cluster", two_nodes.address, "-o", "all.onnx")
    assert outcome.code == 0, outcome.err
    assert "2 workers of 1 thread" in outcome.err
    assert len(killed) == 3
    assert Path("all.onnx").read_bytes() == Path("one.onnx").read_bytes()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds workers by /proc")
def test_a_worker_killed_in_the_middle_of_a_calibration_changes_nothing(
    run: Any, two_nodes: Any, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "killing.py").write_text(_KILLING)
    words = ("calibrate", model, "--calib-data", "killing.py:feeds")
    outcome = run(*words, "--cluster", two_nodes.address, "-o", "all.npz", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["samples"] == 40
    assert Path("killed").exists()
    assert run(*words, "-o", "one.npz").code == 0
    assert Path("all.npz").read_bytes() == Path("one.npz").read_bytes()


def test_numpy_takes_as_many_threads_in_workers_as_here(two_nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Variables:
        @contextmanager
        def opened(self) -> Iterator[Callable[[str], bytes]]:
            yield lambda name: os.environ.get(name, "").encode()

    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    with ray_workers(two_nodes.address) as workers:
        found = [value.decode() for _, value in sorted(workers.map(Variables(), names))]
    assert found == [str(len(os.sched_getaffinity(0))), ""]
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    with ray_workers(two_nodes.address) as workers:
        assert [value for _, value in workers.map(Variables(), names[1:])] == [b"3"]


def test_a_task_whose_worker_dies_is_done_again(two_nodes: Any, tmp_path: Path) -> None:
    with ray_workers(two_nodes.address) as workers:
        found = dict(workers.map(_local_work(tmp_path, deadly=5), range(12)))
    assert (tmp_path / "died").exists()
    assert workers.busy_s > 0.0
    assert found == {number: str(number**2).encode() for number in range(12)}
    # Work is opened once in each of two processes, and in the one that took the place of a third.
    assert 2 <= len(list(tmp_path.glob("opened-*"))) <= 4


def test_a_task_that_kills_every_worker_is_an_error_that_says_so(two_nodes: Any, tmp_path: Path) -> None:
    with ray_workers(two_nodes.address) as workers, pytest.raises(InputError, match="task 3 could not be done"):
        list(workers.map(_local_work(tmp_path, deadly=2, always=True), range(4)))


def test_a_node_that_goes_leaves_its_tasks_to_the_other(two_nodes: Any, tmp_path: Path) -> None:
    node = two_nodes.add_node(num_cpus=1)
    with ray_workers(two_nodes.address) as workers:
        assert workers.count == 3
        found = {}
        for number, result in workers.map(_local_work(tmp_path, seconds=0.1), range(20)):
            found[number] = result
            if len(found) == 3:
                two_nodes.remove_node(node, allow_graceful=False)
    assert found == {number: str(number**2).encode() for number in range(20)}


def test_an_error_of_a_worker_is_told_as_one_of_this_process(run: Any, two_nodes: Any, model: Path) -> None:
    images = np.load("data.npz")["image"]
    images[17] = 3e38
    np.savez("large.npz", image=images)
    here = run("calibrate", model, "--calib-data", "large.npz", "-o", "one.npz")
    there = run("calibrate", model, "--calib-data", "large.npz", "-o", "all.npz", "--cluster", two_nodes.address)
    assert here.code == there.code == 2
    assert next(line for line in here.err.splitlines() if line.startswith("error")) in there.err
    assert not Path("all.npz").exists()


@pytest.mark.slow
def test_a_driver_that_was_killed_goes_on_from_what_is_on_disk(
    run: Any, two_nodes: Any, model: Path, one_pass: Callable[[], bytes], cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\n\nimport numpy as np\n\n\ndef feeds():\n    for image in np.load('data.npz')['image']:\n"
        "        time.sleep(0.1)\n        yield {'image': image[None]}\n"
    )
    words = ["calibrate", str(model), "--calib-data", "slow.py:feeds", "--batch-size", "1", "-o", "all.npz"]
    words += ["--cluster", two_nodes.address]
    driver = subprocess.Popen([sys.executable, "-m", "qtool", *words], cwd=tmp_path, env=dict(os.environ))
    deadline = time.monotonic() + 60
    while not (kept := [path for path in cache.rglob("*") if path.is_file()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    assert kept
    assert not Path("all.npz").exists()
    outcome = run(*words)
    assert outcome.code == 0, outcome.err
    assert run("calibrate", model, "--calib-data", "slow.py:feeds", "--batch-size", "1", "-o", "one.npz").code == 0
    assert Path("all.npz").read_bytes() == Path("one.npz").read_bytes()
