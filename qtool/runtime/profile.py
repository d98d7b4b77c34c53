"""Measures the time of each node with onnxruntime's profiler."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.private_folder import private_folder
from qtool.runtime.graphs import saved
from qtool.runtime.session import Session

# Worker threads of the model before keep spinning for a while: the first run of a turn is not the fastest.
_TURNS, _RUNS_A_TURN = 3, 3
_RUNS = _TURNS * _RUNS_A_TURN
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
class _Kernel:
    """One run of one kernel."""

    name: str
    operator: str
    seconds: float


def kernel_seconds(models: Sequence[ir.Model], feed: Feed, *, threads: int = 0) -> tuple[dict[str, float], ...]:
    """Returns for each model the shortest time of several runs of every kernel, in seconds, by name.

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
        sources = [stack.enter_context(saved(*given)) for given in zip(models, folders, strict=True)]
        return tuple(map(_shortest, _profiled(sources, feed, folders, threads)))


def _shortest(kernels: Sequence[_Kernel]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {}
    for kernel in kernels:
        seconds.setdefault(_original_name(kernel.name), []).append(kernel.seconds)
    # Several kernels may share a name; each ran so many times.
    return {name: min(times) * max(1, len(times) // _RUNS) for name, times in seconds.items()}


def operator_seconds(model: Path | bytes, feed: Feed, *, threads: int = 0) -> tuple[OperatorTime, ...]:
    """Returns how long each operator of a model takes, by the shortest of several runs, the longest first.

    Args:
        model: the file, or its bytes.
        feed: what to run it on.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    with private_folder() as folder:
        (kernels,) = _profiled([model], feed, [folder], threads)
    runs: dict[tuple[str, str], list[float]] = {}
    for kernel in kernels:
        runs.setdefault((kernel.operator, kernel.name), []).append(kernel.seconds)
    operators: dict[str, list[float]] = {}
    for (operator, _), times in runs.items():
        operators.setdefault(operator, []).append(min(times))
    found = (
        OperatorTime(operator=operator, seconds=sum(times), kernels=len(times)) for operator, times in operators.items()
    )
    return tuple(sorted(found, key=lambda time: (-time.seconds, time.operator)))


def _profiled(
    sources: Sequence[Path | bytes], feed: Feed, folders: Sequence[Path], threads: int
) -> list[list[_Kernel]]:
    sessions = [
        Session(source, threads=threads, profile_to=folder / "profile")
        for source, folder in zip(sources, folders, strict=True)
    ]
    for _ in range(_TURNS):
        for session in sessions:
            for _ in range(_RUNS_A_TURN):
                session.run(feed)
    return [_kernels(session.end_profile()) for session in sessions]


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
