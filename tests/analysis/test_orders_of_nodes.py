"""Orders that need little memory, compared with every order that there is."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qtool.scheduling.best_order import best_order
from qtool.scheduling.segments import segments
from qtool.scheduling.tasks import Task, Tasks, peak_bytes


def _tasks(count: int, seed: int, reach: int) -> Tasks:
    """Makes tasks at random that read a few of the ``reach`` tensors made last."""
    chosen = random.Random(seed)
    nbytes = [chosen.randint(1, 20) for _ in range(chosen.randint(1, 2))]
    tasks = []
    for _ in range(count):
        near = range(max(0, len(nbytes) - reach), len(nbytes))
        reads = sorted({chosen.choice(near) for _ in range(chosen.randint(1, 3))})
        made = [len(nbytes) + number for number in range(1 if chosen.random() < 0.9 else 2)]
        nbytes += [chosen.randint(1, 20) for _ in made]
        tasks.append(Task(reads=tuple(reads), makes=tuple(made), extra_bytes=chosen.choice((0, 0, 5))))
    read = {tensor for task in tasks for tensor in task.reads}
    kept = {tensor for task in tasks for tensor in task.makes if tensor not in read and chosen.random() < 0.5}
    return Tasks(tasks=tuple(tasks), nbytes=tuple(nbytes), kept=frozenset(kept))


def _is_possible(tasks: Tasks, order: tuple[int, ...]) -> bool:
    places = {number: place for place, number in enumerate(order)}
    return sorted(order) == list(range(len(tasks.tasks))) and all(
        places[earlier] < places[number] for number in order for earlier in tasks.before[number]
    )


def _orders(tasks: Tasks) -> Iterator[tuple[int, ...]]:
    return (order for order in itertools.permutations(range(len(tasks.tasks))) if _is_possible(tasks, order))


@pytest.mark.parametrize("seed", range(60))
def test_no_order_of_a_few_nodes_needs_less(seed: int) -> None:
    tasks = _tasks(6, seed, reach=3 + seed % 5)
    order = best_order(tasks)
    assert _is_possible(tasks, order)
    assert peak_bytes(tasks, order) == min(peak_bytes(tasks, other) for other in _orders(tasks))


@pytest.mark.parametrize("seed", range(10))
def test_cuts_are_where_nothing_moves_past(seed: int) -> None:
    tasks = _tasks(6, seed, reach=3)
    parts = segments(tasks)
    assert [number for part in parts for number in part] == list(range(6))
    for order in _orders(tasks):
        for part in parts:
            assert sorted(order[part.start : part.stop]) == list(part)


@pytest.mark.parametrize("seed", range(4))
def test_many_nodes_need_no_more_than_before(seed: int) -> None:
    tasks = _tasks(150, seed, reach=4 + 20 * (seed % 3))
    order = best_order(tasks)
    assert _is_possible(tasks, order)
    assert peak_bytes(tasks, order) <= peak_bytes(tasks, range(150))


def test_branches_are_finished_one_after_the_other() -> None:
    """Eight branches that each begin with much and end with little; side by side they need it all at once."""
    width = 8
    starts = [Task(reads=(0,), makes=(1 + branch,)) for branch in range(width)]
    ends = [Task(reads=(1 + branch,), makes=(1 + width + branch,)) for branch in range(width)]
    joined = Task(reads=tuple(range(1 + width, 1 + 2 * width)), makes=(1 + 2 * width,))
    tasks = Tasks(
        tasks=(*starts, *ends, joined), nbytes=(1, *[100] * width, *[1] * width, 1), kept=frozenset({1 + 2 * width})
    )
    assert peak_bytes(tasks, range(len(tasks.tasks))) == 1 + 100 * width + 1 - 1
    # The input, one large tensor, and the small ones of the branches that are done, the last of which is just made.
    assert peak_bytes(tasks, best_order(tasks)) == 100 + width


@pytest.mark.parametrize("reach", [6, 3_000])
def test_twice_the_nodes_take_about_twice_the_time(reach: int) -> None:
    seconds = {}
    for count in (4_000, 8_000):
        tasks = _tasks(count, 1, reach)
        tries = []
        for _ in range(2):
            start = time.process_time()
            best_order(tasks)
            tries.append(time.process_time() - start)
        seconds[count] = min(tries)
    assert seconds[8_000] < 4 * seconds[4_000]


def test_the_table_shows_what_another_order_would_need(run: Any, facts: Any, save: Any) -> None:
    path: Path = save(
        "branches.onnx",
        """branches (float[1,4] x) => (float[1,1] y) {
            a = Concat <axis = 1> (x, x, x, x, x, x, x, x)
            b = Concat <axis = 1> (x, x, x, x, x, x, x, x)
            c = ReduceSum (a)
            d = ReduceSum (b)
            y = Add (c, d)
        }""",
    )
    memory = facts(path, "--memory")["memory"]
    assert (memory["peak_bytes"], memory["reordered_peak_bytes"]) == (2 * 128 + 16, 128 + 16 + 4)
    assert "in the best order found" in run("inspect", path, "--memory").out
