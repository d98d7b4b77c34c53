"""A Python function that yields feeds."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from calib.datasets.arranging import arrange
from calib.datasets.base import Remark
from calib.datasets.batching import Chunk, batches, wanted, window_for
from calib.datasets.matching import check_dtype, check_names, conform, only_input
from calib.errors import CalibError
from calib.specs import Array, TensorSpec


class CallableSource:
    """Streams what a function yields: one mapping of arrays by input name, or one array for a one-input model, a step.

    How many samples a step holds follows from the rank of the model's inputs: see ``arrange``. The function is
    called anew for each pass.
    """

    def __init__(self, source: str) -> None:
        """Imports the function that ``source`` names, ``pkg.module:function`` or ``file.py:function``.

        Raises:
            CalibError: the module or the function is missing, or importing it fails.
        """
        self._where = source
        self._function = _imported(source)

    @property
    def count(self) -> int | None:
        """None: only a full pass would tell."""
        return None

    def specs(self) -> tuple[TensorSpec, ...]:
        """Describes the arrays of the first step, taking the first axis for the samples.

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
        """Joins the values of ``name`` of all steps, such as labels; None where the first step has none.

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
        """Streams batches, checking the first step at once; see ``Dataset.feeds``."""
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
        except Exception as error:  # the function is not ours: whatever it raises is named with it
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
            f"'{name}' of {self._where} at step {number} is no array of numbers",
            fix="make it one with numpy.asarray(values, dtype='float32')",
        )

    def _failed(self, error: Exception) -> CalibError:
        reason = " ".join(str(error).split())
        return CalibError(
            f"{self._where} raises {type(error).__name__}{': ' if reason else ''}{reason}",
            fix="mend the function: it takes no arguments and returns or yields {'input name': array} again and again",
        )


def _imported(source: str) -> Callable[[], Iterable[Any]]:
    module_name, _, function_name = source.rpartition(":")
    module = _module(module_name, source)
    function = getattr(module, function_name, None)
    if function is None:
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        near = difflib.get_close_matches(function_name, names, n=1)
        raise CalibError(
            f"there is no '{function_name}' in {module_name}",
            fix=f"did you mean {module_name}:{near[0]}?" if near else "check the name of the function",
        )
    if not callable(function):
        raise CalibError(
            f"{source} is a {type(function).__name__}, no function", fix="name a function without arguments"
        )
    return cast("Callable[[], Iterable[Any]]", function)


def _module(name: str, source: str) -> ModuleType:
    path = Path(name)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise CalibError(f"there is no file {name}", fix="check the path before the colon")
    with _importable(path.parent if is_file else Path()):
        try:
            return _run_file(path) if is_file else importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                fix = "check the name, install the package, or give the file: path/to/file.py:function"
                raise CalibError(f"there is no module '{error.name}' for {source}", fix=fix) from error
            raise CalibError(
                f"{name} needs the module '{error.name}', which is not installed", fix=f"pip install {error.name}"
            ) from error
        except Exception as error:  # a module may raise anything while it is imported
            raise CalibError(
                f"importing {name} raises {type(error).__name__}: {' '.join(str(error).split())}", fix="mend the module"
            ) from error


def _run_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise CalibError(f"{path} is no Python file", fix="give a .py file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets imports find modules in ``folder``: what lies beside a script, or in the working folder."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
