"""Numerical check: compares a changed model with its original on the same inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Array, Feed
from qtool.errors import InputError, RuntimeRefusedError
from qtool.formats.torch.example_inputs import InputSpec, first_sizes, free_dims, leading_dims, make_feeds
from qtool.passes.layout.graph_borders import Turned
from qtool.runtime.graphs import open_graph
from qtool.runtime.session import Level, Session
from qtool.runtime.steady_draws import file_draws
from qtool.workflows.quantize.data_request import DataRequest

# At most so many samples are compared.
_SAMPLES = 16
_SECOND_SAMPLES = 3
# onnxruntime plans the memory of so many nodes in a second or two, and of ten times as many in minutes.
_MANY_NODES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The difference of an output from the original's.

    Attributes:
        output: its name.
        relative: the largest difference over the largest value; for integers and booleans, the share of values that
            differ. Infinite where shapes differ, or only one of two values is NaN.
    """

    output: str
    relative: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The result of a comparison.

    Attributes:
        differences: the largest ones, by output.
        samples: the inputs, in words.
    """

    differences: tuple[Difference, ...]
    samples: str

    @property
    def worst(self) -> Difference:
        """The output with the largest difference."""
        return max(self.differences, key=lambda difference: difference.relative)


class Witness:
    """Holds the inputs and the outputs of a model, so that others can be compared with it."""

    def __init__(self, model: Path, inputs: Sequence[InputSpec], data: DataRequest | None, *, nodes: int = 0) -> None:
        """Runs the model without optimizations of onnxruntime.

        Args:
            model: the file.
            inputs: its inputs.
            data: real data; random values at two sizes of the free dimensions otherwise.
            nodes: how many nodes it has.

        Raises:
            RuntimeRefusedError: onnxruntime does not load the model, or not run it on the data.
            InputError: it does not run on random values.
            CalibError: the data does not fit the inputs.
        """
        self._model = model
        self._is_large = nodes > _MANY_NODES
        self._runs: list[tuple[Feed, dict[str, Array]]] = []
        with self._opened(model) as session:
            self.samples = self._run(session, inputs, data)

    def _run(self, session: Session, inputs: Sequence[InputSpec], data: DataRequest | None) -> str:
        """Runs the model, and describes the inputs."""
        if data is None:
            self._runs = list(_random_runs(session, inputs))
            return "random inputs"
        dataset = data.open()
        count = 0
        for feed in data.feeds(dataset, session.inputs, session.outputs):
            self._runs.append((feed, session.run(feed)))
            count += next(iter(feed.values())).shape[0] if next(iter(feed.values())).ndim else 1
            if count >= (data.limit or _SAMPLES):
                break
        return f"{count} sample{'' if count == 1 else 's'} of {data.source}"

    def compare(self, model: Path, turned: Turned | None = None) -> Agreement:
        """Runs another model on the same inputs.

        Args:
            model: the file.
            turned: the inputs and outputs with another layout; None for none.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run it.
        """
        with self._opened(model) as session:
            return self._agreement(session, turned)

    def noise(self) -> float:
        """Returns the difference that onnxruntime's own optimizations cause, relative to the largest value.

        Networks that end in a step function amplify the rounding differences of reordered sums.
        """
        with self._opened(self._model, level="all") as session:
            return self._agreement(session).worst.relative

    @contextmanager
    def _opened(self, model: Path, *, level: Level = "none") -> Iterator[Session]:
        """Yields a session; all models draw the same random numbers."""
        if file_draws(model):
            with open_graph(ir.load(model), level=level) as session:
                yield session
        else:
            yield Session(model, level=level, reuses_memory=not self._is_large)

    def _agreement(self, session: Session, turned: Turned | None = None) -> Agreement:
        found: dict[str, list[tuple[Array, Array]]] = {}
        for feed, expected in self._runs:
            results = session.run(feed) if turned is None else turned.returned(session.run(turned.feed(feed)))
            for name, values in expected.items():
                found.setdefault(name, []).append((values, results[name]))
        differences = tuple(Difference(output=name, relative=_distance(pairs)) for name, pairs in found.items())
        return Agreement(differences=differences, samples=self.samples)


def _random_runs(session: Session, inputs: Sequence[InputSpec]) -> Iterator[tuple[Feed, dict[str, Array]]]:
    sizes = first_sizes(inputs, None)
    feed = make_feeds(inputs, sizes, None)
    try:
        yield feed, session.run(feed)
    except RuntimeRefusedError as error:
        raise InputError(
            "the model does not run on random inputs, so its outputs cannot be compared",
            fix="give real ones with --data, or write the result unchecked with --no-check",
        ) from error
    yield from islice(_other_sizes(session, inputs, sizes), 1)


def _other_sizes(
    session: Session, inputs: Sequence[InputSpec], first: Mapping[str, int]
) -> Iterator[tuple[Feed, dict[str, Array]]]:
    """Yields runs at other lengths, where there are free ones and the model takes them."""
    leading = leading_dims(inputs)
    for factor in (2.0, 0.5, 1.0):
        sizes = {
            name: _SECOND_SAMPLES if name in leading else max(2, int(length * factor)) for name, length in first.items()
        }
        if not free_dims(inputs) or sizes == first:
            continue
        feed = make_feeds(inputs, sizes, None)
        try:
            found = session.run(feed)
        except RuntimeRefusedError:  # the original does not support this length either
            continue
        yield feed, found


def _distance(pairs: Sequence[tuple[Any, Any]]) -> float:
    """Returns the largest differences over all runs."""
    gaps, largest = [0.0], float(np.finfo(np.float32).tiny)
    for expected, found in pairs:
        if expected.shape != found.shape or expected.dtype != found.dtype:
            gaps.append(float("inf"))
        elif expected.dtype.kind != "f":
            gaps.append(float(np.mean(expected != found)) if expected.size else 0.0)
            largest = 1.0
        else:
            left, right = expected.astype(np.float64), found.astype(np.float64)
            finite = np.isfinite(left)
            same = np.array_equal(left[~finite], right[~finite], equal_nan=True) and np.isfinite(right[finite]).all()
            gaps.append(float(np.abs(left[finite] - right[finite]).max(initial=0.0)) if same else float("inf"))
            largest = max(largest, float(np.abs(left[finite]).max(initial=0.0)))
    return max(gaps) / largest
