"""Models that belong together: a float model and what was made from it, each in a runtime."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from qtool.backends.execution_choice import target_of_file
from qtool.backends.runtimes import runtime_named
from qtool.calib.specs import Array, Dim, TensorSpec
from qtool.errors import InputError
from qtool.formats.onnx.map_types import load_model
from qtool.runtime.parts import parts_of
from qtool.runtime.running_model import RunningModel
from qtool.runtime.steady_draws import file_draws


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


class SessionGroup:
    """Runs a float model and quantized ones on the same feeds.

    Attributes:
        inputs: what all of them take: a dimension is fixed where one of the models fixes it.
        outputs: what all of them return, as the float model declares it.
    """

    def __init__(self, sessions: Sequence[RunningModel], names: Sequence[str]) -> None:
        """Makes sure that they can be compared.

        Args:
            sessions: the float model's, then those of quantized models.
            names: what errors call the models.

        Raises:
            InputError: inputs or outputs differ in name or type, or inputs in a fixed dimension.
        """
        self._sessions = tuple(sessions)
        first = self._sessions[0]
        self.inputs, self.outputs = first.inputs, first.outputs
        for session, name in zip(self._sessions[1:], names[1:], strict=True):
            _check_names(self.inputs, session.inputs, "input", name)
            _check_names(self.outputs, session.outputs, "output", name)
            _check_kinds(self.outputs, session.outputs, name)
            others = {spec.name: spec for spec in session.inputs}
            self.inputs = tuple(_common(spec, others[spec.name], name) for spec in self.inputs)

    @property
    def count(self) -> int:
        """How many models there are, the float model included."""
        return len(self._sessions)

    @property
    def models(self) -> tuple[RunningModel, ...]:
        """The models themselves."""
        return self._sessions

    def runs(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Iterator[dict[str, Array]]:
        """Yields the outputs of one model after the other, so that one at a time is held beside what is kept.

        Args:
            feeds: the inputs.
            outputs: the outputs to return; None for all.

        Raises:
            RuntimeRefusedError: a runtime stops while it runs one of them.
        """
        for session in self._sessions:
            yield session.run(feeds, outputs)

    def timed(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> tuple[Callable[[], object], ...]:
        """Returns what runs each model on ``feeds`` and returns the named outputs, by default all."""
        return tuple(partial(session.run, feeds, outputs) for session in self._sessions)


@contextmanager
def open_group(models: Sequence[JudgedModel], *, threads: int = 0, in_parts: bool = False) -> Iterator[SessionGroup]:
    """Opens a float model and the others after it, each as it is in its runtime, or all in onnxruntime in parts.

    Raises:
        RuntimeRefusedError: a runtime does not load one of them.
        InputError: they do not belong together.
    """
    names = [model.name for model in models]
    if in_parts:
        yield SessionGroup([parts_of(load_model(model.path)) for model in models], names)
        return
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(runtime_named(model.runtime).open_file(model.path, threads=threads)) for model in models
        ]
        yield SessionGroup(sessions, names)


@contextmanager
def evaluation_group(
    group: SessionGroup, models: Sequence[JudgedModel], *, threads: int = 0, in_parts: bool = False
) -> Iterator[SessionGroup]:
    """Yields what compares outputs in place of ``group``, which opened the same models as they are.

    Models for machines that a runtime does not stand for run node by node, and all models draw the same random numbers;
    a group that runs in parts does both.

    Raises:
        RuntimeRefusedError: a runtime does not load one of them.
    """
    if in_parts:
        yield group
        return
    runtimes = [runtime_named(model.runtime) for model in models]
    executions = [runtime.judging(target_of_file(model.path)) for runtime, model in zip(runtimes, models, strict=True)]
    as_they_are = all(
        execution == runtime.judging(None) for execution, runtime in zip(executions, runtimes, strict=True)
    )
    if as_they_are and not any(file_draws(model.path) for model in models):
        yield group
        return
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(execution.open_file(model.path, threads=threads))
            for execution, model in zip(executions, models, strict=True)
        ]
        yield SessionGroup(sessions, [model.name for model in models])


def _check_names(left: Sequence[TensorSpec], right: Sequence[TensorSpec], role: str, candidate: str) -> None:
    ours, theirs = [spec.name for spec in left], [spec.name for spec in right]
    for have, lack, which in ((ours, theirs, candidate), (theirs, ours, "the float model")):
        for name in have:
            if name in lack:
                continue
            spare = [other for other in lack if other not in have] or lack
            near = difflib.get_close_matches(name, spare, n=1, cutoff=0.0)
            raise InputError(
                f"{which} has no {role} '{name}'" + (f"; the nearest is '{near[0]}'" if near else ""),
                fix="compare a model with the one that was made from it",
            )


def _check_kinds(left: Sequence[TensorSpec], right: Sequence[TensorSpec], candidate: str) -> None:
    others = {spec.name: spec for spec in right}
    for spec in left:
        other = others[spec.name]
        if (spec.dtype.kind == "f") != (other.dtype.kind == "f"):
            raise InputError(
                f"the output '{spec.name}' is {spec.dtype} in the float model, {other.dtype} in {candidate}",
                fix="compare models whose outputs have the same types",
            )


def _common(spec: TensorSpec, other: TensorSpec, candidate: str) -> TensorSpec:
    if spec.dtype != other.dtype:
        raise InputError(
            f"the input '{spec.name}' is {spec.dtype} in the float model, {other.dtype} in {candidate}",
            fix="compare models that take the same data",
        )
    if spec.shape is None or other.shape is None:
        return spec if other.shape is None else other
    if len(spec.shape) != len(other.shape) or any(map(_clash, spec.shape, other.shape)):
        raise InputError(
            f"the input '{spec.name}' is {spec.shape} in the float model, {other.shape} in {candidate}",
            fix="compare models that take the same data",
        )
    shape = tuple(
        ours if isinstance(ours, int) else theirs for ours, theirs in zip(spec.shape, other.shape, strict=True)
    )
    return replace(spec, shape=shape)


def _clash(ours: Dim, theirs: Dim) -> bool:
    return isinstance(ours, int) and isinstance(theirs, int) and ours != theirs
