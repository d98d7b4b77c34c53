"""Measures how long each node of a graph runs, with onnxruntime's own profiler."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import onnx_ir as ir

from calib.specs import Feed
from qtool.runtime.graphs import saved
from qtool.runtime.session import Session

_RUNS = 4
_KERNEL = "_kernel_time"
# What onnxruntime adds to the name of a node, or of the output it is named after, when it rewrites it.
_REWRITTEN = re.compile(r"(_nchwc|_token_\d+|/duplicated.*)$")


def kernel_seconds(model: ir.Model, feed: Feed, *, threads: int = 0) -> dict[str, float]:
    """Returns the shortest time of several runs of every kernel, in seconds, by the name it goes back to.

    That name is a node's or, where onnxruntime changed the layout, that of an output; a kernel that stands for several
    nodes has the name of one of them.

    Args:
        model: the graph, which is left as it is.
        feed: what to run it on.
        threads: threads inside an operator; 0 is one a core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    with tempfile.TemporaryDirectory() as folder, saved(model, Path(folder)) as source:
        session = Session(source, threads=threads, profile_to=Path(folder) / "profile")
        for _ in range(_RUNS):
            session.run(feed)
        events = json.loads(session.end_profile().read_text(encoding="utf-8"))
    seconds: dict[str, list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            seconds.setdefault(_original_name(name.removesuffix(_KERNEL)), []).append(event["dur"] * 1e-6)
    # A name can stand for several kernels, each of which ran so many times.
    return {name: min(times) * max(1, len(times) // _RUNS) for name, times in seconds.items()}


def _original_name(name: str) -> str:
    while (shorter := _REWRITTEN.sub("", name)) != name:
        name = shorter
    return name
