"""Spreads work on parts of arrays over the processor's cores: numpy computes without Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Part = TypeVar("Part")


def in_threads(work: Callable[[Part], None], parts: Iterable[Part]) -> None:
    """Calls ``work`` once for each part, on all cores that the process may use; parts must not depend on each other.

    Raises:
        Exception: the first that ``work`` raises, in the order of the parts.
    """
    rest = iter(parts)
    some = list(islice(rest, 2))
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(some) < 2 or count < 2:
        for part in (*some, *rest):
            work(part)
        return
    with ThreadPoolExecutor(max_workers=count) as pool:
        # Reading the results raises what the work raised.
        for _ in pool.map(work, (*some, *rest)):
            pass
