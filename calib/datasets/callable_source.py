"""A Python function that yields feeds, as calibration data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qtool.calib.datasets.arranging import arrange
from qtool.calib.datasets.base import Remark
from qtool.calib.datasets.batching import Chunk, batches, wanted, window_for
from qtool.calib.datasets.matching import check_dtype, check_names, conform, only_input
from qtool.calib.datasets.python_function import imported
from qtool.calib.errors import CalibError
from qtool.calib.specs import Array, TensorSpec


class CallableSource:
    """Streams the steps of a function: each yields arrays by input name, or one array for a one-input model.

    The number of samples per step follows from the rank of the model's inputs: see ``arrange``. The function is
    called again for each pass.
    """

    def __init__(self, source: str) -> None:
        """Imports the function that ``source`` names, ``pkg.module:function`` or ``file.py:function``.

        Raises:
            CalibError: the module or the function is missing, or importing it fails.
        """
        self._where = source
        self._function: Callable[[], Iterable[Any]] = imported(source)

    @property
    def count(self) -> int | None:
        """None: it takes a full pass to know."""
        return None

    def specs(self) -> tuple[TensorSpec, ...]:
        """Describes the arrays of the first step, with the first axis for the samples.

        Raises:
            CalibError: the function fails, or does not yield arrays.
        """
        first = next(self._steps(), None)
        named = {} if first is None else self._named(first, None, 0)
        arrays = {name: self._array(name, value, 0) for name, value in named.items() if not name.startswith("_")}
        return tuple(
            TensorSpec(name, value.dtype, (None, *value.shape[1:])) for name, value in arrays.items() if value.ndim
        )

    def array(self, name: str) -> Array | None:
        """Concatenates the values of ``name`` of all steps, such as labels; None where the first step has none.

        Raises:
            CalibError: the function fails, or a later step lacks it.
        """
        parts: list[Array] = []
        for number, step in enumerate(self._steps()):
            named = self._named(step, None, number)
            if name not in named:
                if not parts:
                    return None
                raise CalibError(f"{self._where} gives no '{name}' at step {number}", fix="yield it at every step")
            parts.append(np.atleast_1d(self._array(name, named[name], number)))
        return np.concatenate(parts) if parts else None

    def feeds(
        self,
        inputs: Sequence[TensorSpec],
        *,
        batch_size: int = 1,
        limit: int | None = None,
        skip: int = 0,
        remark: Remark | None = None,
    ) -> Iterator[dict[str, Array]]:
        """Streams batches, after checking the first step; see ``Dataset.feeds``."""
        window = window_for(inputs, batch_size=batch_size, limit=limit, skip=skip, count=None, where=self._where)
        chunks = self._chunks(inputs, window.batch_size)
        head = list(itertools.islice(chunks, 1))
        return batches(wanted(itertools.chain(head, chunks), window), window, where=self._where, remark=remark)

    def _chunks(self, inputs: Sequence[TensorSpec], batch_size: int) -> Iterator[Chunk]:
        sample = 0
        for number, step in enumerate(self._steps()):
            where = f"step {number} of {self._where}"
            named = self._named(step, inputs, number)
            check_names(inputs, named, where)
            arrays = {spec.name: self._array(spec.name, named[spec.name], number) for spec in inputs}
            for spec in inputs:
                check_dtype(arrays[spec.name].dtype, spec, where)
            shapes = {name: value.shape for name, value in arrays.items()}
            arrangement = arrange(shapes, inputs, batch_size=batch_size, where=where)
            values = {
                spec.name: conform(arrangement.apply(spec.name, arrays[spec.name]), spec, self._where, sample)
                for spec in inputs
            }
            sample += 1 if arrangement.rows is None else arrangement.rows
            if arrangement.rows != 0:
                yield Chunk(arrays=values, rows=arrangement.rows)

    def _steps(self) -> Iterator[Any]:
        try:
            steps = iter(self._function())
        except Exception as error:  # a user's function may raise anything
            raise self._failed(error) from error
        while True:
            try:
                step = next(steps)
            except StopIteration:
                return
            except Exception as error:  # as above
                raise self._failed(error) from error
            yield step

    def _named(self, step: Any, inputs: Sequence[TensorSpec] | None, number: int) -> Mapping[str, Any]:
        if isinstance(step, Mapping):
            return {str(name): value for name, value in step.items()}
        if isinstance(step, tuple | list | str | bytes) or not hasattr(step, "__array__"):
            raise CalibError(
                f"{self._where} yields a {type(step).__name__} at step {number}",
                fix="yield a dictionary: {'input name': array}",
            )
        return {"" if inputs is None else only_input(inputs, self._where).name: step}

    def _array(self, name: str, value: Any, number: int) -> Array:
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, torch tensors that need a gradient
            raise self._no_array(name, number) from error
        if array.dtype.hasobject and not all(isinstance(item, str) for item in array.flat):
            raise self._no_array(name, number)
        return array

    def _no_array(self, name: str, number: int) -> CalibError:
        return CalibError(
            f"'{name}' of {self._where} at step {number} is not an array of numbers",
            fix="convert it with numpy.asarray(values, dtype='float32')",
        )

    def _failed(self, error: Exception) -> CalibError:
        reason = " ".join(str(error).split())
        return CalibError(
            f"{self._where} raises {type(error).__name__}{': ' if reason else ''}{reason}",
            fix="correct the function: it takes no arguments and returns or yields {'input name': array} repeatedly",
        )
