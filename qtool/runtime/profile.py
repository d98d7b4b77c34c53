"""Measures the time of each node with onnxruntime's profiler."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.private_folder import private_folder
from qtool.runtime.graphs import saved
from qtool.runtime.long_graphs import is_long
from qtool.runtime.session import Session
from qtool.runtime.session_chain import SessionChain

# Worker threads of the model before keep spinning for a while: the first run of a turn is not the fastest.
_WARM_UPS, _TURNS, _FEWEST_RUNS = 2, 3, 3
# The profiler counts whole microseconds, which is much of a small kernel's time; the mean of many runs is finer.
_TURN_SECONDS, _MOST_RUNS = 0.02, 30
# Slower runs than these of every kernel were disturbed.
_UNDISTURBED = 0.5
# What is left of a microsecond is cut off, half of one on average.
_CUT_OFF_SECONDS = 0.5e-6
_KERNEL = "_kernel_time"
# What onnxruntime adds to the name of a node, or of the output it is named after, when it rewrites it.
_REWRITTEN = re.compile(r"(_nchwc|_token_\d+|/duplicated.*|/QuickGeluFusion/?)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """The time of all kernels of one operator.

    Attributes:
        operator: its name in the graph as onnxruntime rewrote it, such as QLinearConv or FusedMatMul.
        seconds: in one run of the model.
        kernels: how many of them there are.
    """

    operator: str
    seconds: float
    kernels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """The time of all kernels of one name in a run: one, or what onnxruntime inserted without naming it after a node.

    Attributes:
        seconds: of all of them.
        kernels: how many there are.
    """

    seconds: float
    kernels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kernel:
    """One run of one kernel."""

    name: str
    operator: str
    seconds: float


def kernel_times(models: Sequence[ir.Model], feed: Feed, *, threads: int = 0) -> tuple[dict[str, KernelTime], ...]:
    """Returns for each model the time of every kernel in an undisturbed run, by name.

    The name is a node's or, where onnxruntime changed the layout, that of an output; a kernel of several fused nodes
    has the name of one of them. Models run in turns, so that changing load on the machine affects all of them alike.

    Args:
        models: the graphs, which are not modified.
        feed: what to run them on.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a model.
    """
    with ExitStack() as stack:
        folders = [stack.enter_context(private_folder()) for _ in models]
        opened = [_opened(model, folder, threads, stack) for model, folder in zip(models, folders, strict=True)]
        return tuple(_by_name(kernels, runs) for kernels, runs in _profiled(opened, feed))


def _by_name(kernels: Sequence[_Kernel], runs: int) -> dict[str, KernelTime]:
    seconds: dict[str, list[float]] = {}
    for kernel in kernels:
        seconds.setdefault(_original_name(kernel.name), []).append(kernel.seconds)
    found = {}
    for name, times in seconds.items():
        count = max(1, len(times) // runs)
        found[name] = KernelTime(seconds=_undisturbed(times) * count, kernels=count)
    return found


def _undisturbed(seconds: Sequence[float]) -> float:
    """Returns the mean of the shorter times."""
    shorter = sorted(seconds)[: math.ceil(_UNDISTURBED * len(seconds))]
    return float(np.mean(shorter)) + _CUT_OFF_SECONDS


def operator_seconds(model: Path | bytes, feed: Feed, *, threads: int = 0) -> tuple[OperatorTime, ...]:
    """Returns how long each operator of a model takes in an undisturbed run, the longest first.

    Args:
        model: the file, or its bytes.
        feed: what to run it on.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    with private_folder() as folder:
        ((kernels, _),) = _profiled([_opened_file(model, folder, threads)], feed)
    runs: dict[tuple[str, str], list[float]] = {}
    for kernel in kernels:
        runs.setdefault((kernel.operator, kernel.name), []).append(kernel.seconds)
    operators: dict[str, list[float]] = {}
    for (operator, _), times in runs.items():
        operators.setdefault(operator, []).append(_undisturbed(times))
    found = (
        OperatorTime(operator=operator, seconds=sum(times), kernels=len(times)) for operator, times in operators.items()
    )
    return tuple(sorted(found, key=lambda time: (-time.seconds, time.operator)))


def _opened(model: ir.Model, folder: Path, threads: int, stack: ExitStack) -> Session:
    if not is_long(model):
        return _opened_file(stack.enter_context(saved(model, folder)), folder, threads)
    places = count()

    def opens(part: ir.Model) -> Session:
        own = folder / f"part{next(places)}"
        own.mkdir()
        with saved(part, own) as source:
            return _opened_file(source, own, threads)

    return SessionChain(model, opens)


def _opened_file(source: Path | bytes, folder: Path, threads: int) -> Session:
    return Session(source, threads=threads, profile_to=folder / "profile")


def _profiled(sessions: Sequence[Session], feed: Feed) -> list[tuple[list[_Kernel], int]]:
    """Returns the kernels that each session ran, in every run, and the number of runs."""
    turns = [_runs_a_turn(session, feed) for session in sessions]
    for _ in range(_TURNS):
        for session, turn in zip(sessions, turns, strict=True):
            for _ in range(turn):
                session.run(feed)
    return [
        ([kernel for profile in session.end_profiles() for kernel in _kernels(profile)], _WARM_UPS + _TURNS * turn)
        for session, turn in zip(sessions, turns, strict=True)
    ]


def _runs_a_turn(session: Session, feed: Feed) -> int:
    """Runs a session to warm it up, and returns how many runs make a turn."""
    for _ in range(_WARM_UPS):
        start = time.perf_counter()
        session.run(feed)
        run_s = max(time.perf_counter() - start, sys.float_info.min)
    return int(min(max(_TURN_SECONDS / run_s, _FEWEST_RUNS), _MOST_RUNS))


def _kernels(profile: Path) -> list[_Kernel]:
    events = json.loads(profile.read_text(encoding="utf-8"))
    return [
        _Kernel(
            name=event["name"].removesuffix(_KERNEL),
            operator=str(event.get("args", {}).get("op_name", "")),
            seconds=event["dur"] * 1e-6,
        )
        for event in events
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith(_KERNEL)
    ]


def _original_name(name: str) -> str:
    while (shorter := _REWRITTEN.sub("", name)) != name:
        name = shorter
    return name
