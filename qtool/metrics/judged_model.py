"""What a report runs: a model in a runtime, and the float model that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qtool.backends.runtimes import runtime_named


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedModel:
    """One model in one runtime.

    Attributes:
        path: its graph.
        name: what the report calls it.
        runtime: the key of what runs it in ``RUNTIMES``.
        model: its place among the models.
        reference: the place, among all judged models, of the float model that it is compared with.
    """

    path: Path
    name: str
    runtime: str
    model: int
    reference: int


def judged_models(paths: Sequence[Path], names: Sequence[str], runtimes: Sequence[str]) -> tuple[JudgedModel, ...]:
    """Returns every model in every runtime, the float model of the first runtime first.

    A quantized model is compared with the float model in its own runtime, and that one with the first of all.
    """
    judged = []
    for number, runtime in enumerate(runtimes):
        title = runtime_named(runtime).title
        for place, (path, name) in enumerate(zip(paths, names, strict=True)):
            judged.append(
                JudgedModel(
                    path=path,
                    name=name if len(runtimes) == 1 else f"{name} in {title}",
                    runtime=runtime,
                    model=place,
                    reference=number * len(paths) if place else 0,
                )
            )
    return tuple(judged)
