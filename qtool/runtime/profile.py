"""Measures the time of each node with onnxruntime's profiler."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.private_folder import private_folder
from qtool.runtime.graphs import saved
from qtool.runtime.long_graphs import is_long
from qtool.runtime.session import Session
from qtool.runtime.session_chain import SessionChain

_RUNS = 8
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


def kernel_seconds(model: ir.Model, feed: Feed, *, threads: int = 0) -> dict[str, float]:
    """Returns the shortest time of several runs of every kernel, in seconds, by name.

    The name is a node's or, where onnxruntime changed the layout, that of an output; a kernel of several fused nodes
    has the name of one of them.

    Args:
        model: the graph, which is not modified.
        feed: what to run it on.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    with private_folder() as folder:
        if is_long(model):
            kernels = _profiled_chain(model, feed, folder, threads)
        else:
            with saved(model, folder) as source:
                kernels = _profiled(source, feed, folder, threads)
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
        kernels = _profiled(model, feed, folder, threads)
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


def _profiled(source: Path | bytes, feed: Feed, folder: Path, threads: int) -> list[_Kernel]:
    session = Session(source, threads=threads, profile_to=folder / "profile")
    for _ in range(_RUNS):
        session.run(feed)
    return _kernels_in(session.end_profile())


def _profiled_chain(model: ir.Model, feed: Feed, folder: Path, threads: int) -> list[_Kernel]:
    places = count()

    def opens(part: ir.Model) -> Session:
        own = folder / f"part{next(places)}"
        own.mkdir()
        with saved(part, own) as source:
            return Session(source, threads=threads, profile_to=own / "profile")

    chain = SessionChain(model, opens)
    for _ in range(_RUNS):
        chain.run(feed)
    return [kernel for profile in chain.end_profiles() for kernel in _kernels_in(profile)]


def _kernels_in(profile: Path) -> list[_Kernel]:
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
