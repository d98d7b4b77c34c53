"""Runs a long graph as a chain of sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Array
from qtool.errors import RuntimeRefusedError
from qtool.graph.collection_pause import collection_paused
from qtool.graph.specs import model_specs
from qtool.runtime.divided_graph import part_of
from qtool.runtime.long_graphs import short_parts
from qtool.runtime.session import Session

OpensPart: TypeAlias = Callable[[ir.Model], Session]


class SessionChain(Session):
    """Runs the parts of one graph as ``Session`` runs the whole.

    Parts are opened in the first run, when the types of all tensors between them are known.
    """

    def __init__(self, model: ir.Model, opens: OpensPart) -> None:
        """Divides ``model``, which must not change before the first run, and stays as it is; ``opens`` opens a part."""
        with collection_paused(len(model.graph)):
            parts = short_parts(model)
        self._models = [part_of(model, part) for part in parts]
        self._spent = [part.spent for part in parts]
        self._opens = opens
        self._sessions: list[Session] = []
        # Inputs that have a default, and weights that are outputs.
        self._given = {
            value.name or "": value.const_value
            for value in (*model.graph.inputs, *model.graph.outputs)
            if value.const_value is not None and value.is_initializer()
        }
        self._message = None
        self._inputs, self.outputs = model_specs(model)

    def run(self, feeds: Mapping[str, Array], outputs: Iterable[str] | None = None) -> dict[str, Array]:
        """Returns the named outputs (default: all) for one batch of inputs, each as one array.

        Raises:
            RuntimeRefusedError: onnxruntime does not load a part, or stops while it runs it.
        """
        names = [spec.name for spec in self.outputs] if outputs is None else list(outputs)
        values: dict[str, Array] = {name: tensor.numpy() for name, tensor in self._given.items()}
        values |= feeds
        for spec in self.inputs:
            if spec.name not in values:
                raise RuntimeRefusedError(
                    f"there is no array for the input '{spec.name}'", fix="feed every input of the model"
                )
        wanted = set(names)
        for place, spent in enumerate(self._spent):
            values |= self._part(place, values).run({name: values[name] for name in _inputs(self._models[place])})
            for name in spent:
                if name not in wanted:
                    values.pop(name, None)
        return {name: values[name] for name in names}

    def run_uncopied(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Returns the same as ``run``, which copies what it returns.

        Raises:
            RuntimeRefusedError: onnxruntime does not load a part, or stops while it runs it.
        """
        return list(self.run(feeds, outputs).values())

    def end_profiles(self) -> list[Path]:
        """Returns the files with the times of every kernel so far, where parts are opened with a profile."""
        return [profile for session in self._sessions for profile in session.end_profiles()]

    def _part(self, place: int, values: Mapping[str, Array]) -> Session:
        if place == len(self._sessions):
            with _typed(self._models[place].graph.inputs, values):
                self._sessions.append(self._opens(self._models[place]))
        return self._sessions[place]


@contextmanager
def _typed(inputs: Sequence[ir.Value], values: Mapping[str, Array]) -> Iterator[None]:
    """Gives inputs the types of ``values``, and a shape, where they have none; takes them back at the end."""
    before = [(value, value.type, value.shape) for value in inputs]
    try:
        for value in inputs:
            array = values[value.name or ""]
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            if value.shape is None:
                value.shape = ir.Shape([None] * np.ndim(array))
        yield
    finally:
        for value, kind, shape in before:
            value.type, value.shape = kind, shape


def _inputs(model: ir.Model) -> list[str]:
    return [value.name or "" for value in model.graph.inputs]
