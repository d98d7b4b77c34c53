"""One ``.npz`` or ``.npy`` file whose first axis holds the samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from qtool.calib.datasets.base import Remark
from qtool.calib.datasets.batching import Chunk, Window, batches, window_for
from qtool.calib.datasets.matching import check_dtype, check_names, check_shape, conform, only_input
from qtool.calib.datasets.stored import StoredArray, open_arrays
from qtool.calib.errors import CalibError
from qtool.calib.specs import Array, TensorSpec


class ArrayFile:
    """Streams the rows of the arrays in one file.

    An array with the rank of its input gives one sample per row. One with a rank more gives the input's whole value
    per row (states, scalars); such rows run one by one.
    """

    def __init__(self, path: Path) -> None:
        """Reads the headers of the arrays, without their values.

        Raises:
            CalibError: the file is damaged or empty, or its arrays differ in length.
        """
        self._where = path.name
        self._arrays = open_arrays(path)
        rows = {name: array.shape[0] for name, array in self._samples().items()}
        if not rows:
            raise CalibError(f"{path} holds no array with a samples axis", fix="numpy.savez it with one row per sample")
        name, count = next(iter(rows.items()))
        for other, other_count in rows.items():
            if other_count != count:
                raise CalibError(
                    f"the arrays in {path} differ in length: '{name}' has {count} rows, '{other}' {other_count}",
                    fix="give each one row per sample; begin the names of arrays that are not inputs with '_'",
                )
        self._count = count

    @property
    def count(self) -> int:
        """The number of rows."""
        return self._count

    def specs(self) -> tuple[TensorSpec, ...]:
        """Describes the arrays that may be inputs."""
        return tuple(TensorSpec(name, array.dtype, (None, *array.shape[1:])) for name, array in self._samples().items())

    def array(self, name: str) -> Array | None:
        """Loads one array whole; see ``Dataset.array``."""
        stored = self._arrays.get(name)
        if stored is None:
            return None
        if stored.shape[:1] != (self.count,):
            raise CalibError(
                f"{stored.label} has the shape {stored.shape}, the data {self.count} samples",
                fix="give it one row per sample",
            )
        return stored.load()

    def feeds(
        self,
        inputs: Sequence[TensorSpec],
        *,
        batch_size: int = 1,
        limit: int | None = None,
        skip: int = 0,
        remark: Remark | None = None,
    ) -> Iterator[dict[str, Array]]:
        """Streams batches; see ``Dataset.feeds``."""
        stored = self._matched(inputs)
        whole = {spec.name for spec in inputs if _is_whole(stored[spec.name], spec)}
        window = window_for(
            [_as_row(spec, whole) for spec in inputs],
            batch_size=batch_size,
            limit=limit,
            skip=skip,
            count=self.count,
            where=self._where,
        )
        if whole and window.batch_size > 1:
            raise CalibError(
                f"each row of '{min(whole)}' in {self._where} is the input's whole value, so rows cannot share a batch",
                fix="use a batch size of 1, and give the other arrays a whole value per row as well",
            )
        for spec in inputs:
            shape = stored[spec.name].shape
            check_dtype(stored[spec.name].dtype, spec, self._where)
            check_shape(shape[1:] if spec.name in whole else shape, spec, self._where)
        chunks = self._chunks(inputs, stored, whole, window)
        return batches(chunks, window, where=self._where, remark=remark)

    def _samples(self) -> dict[str, StoredArray]:
        return {name: array for name, array in self._arrays.items() if not name.startswith("_") and array.shape}

    def _matched(self, inputs: Sequence[TensorSpec]) -> dict[str, StoredArray]:
        if "" in self._arrays:
            return {only_input(inputs, self._where).name: self._arrays[""]}
        check_names(inputs, self._samples(), self._where)
        return {spec.name: self._arrays[spec.name] for spec in inputs}

    def _chunks(
        self, inputs: Sequence[TensorSpec], stored: dict[str, StoredArray], whole: set[str], window: Window
    ) -> Iterator[Chunk]:
        stop = window.stop(self.count)
        rows = row_chunks(stored, inputs, start=window.skip, stop=stop, rows=window.batch_size, where=self._where)
        for chunk in rows:
            if whole:
                arrays = {
                    name: np.asarray(value[0]) if name in whole else value for name, value in chunk.arrays.items()
                }
                yield Chunk(arrays=arrays, rows=None)
            else:
                yield chunk


def row_chunks(
    stored: Mapping[str, StoredArray], inputs: Sequence[TensorSpec], *, start: int, stop: int, rows: int, where: str
) -> Iterator[Chunk]:
    """Yields rows ``start`` to ``stop`` of all arrays together, ``rows`` at a time.

    Raises:
        CalibError: a file is damaged, or a value is NaN, infinite or does not fit the input's type.
    """
    with ExitStack() as stack:
        streams = {
            spec.name: stack.enter_context(closing(stored[spec.name].chunks(rows, start=start, stop=stop)))
            for spec in inputs
        }
        for first in range(start, stop, rows):
            arrays = {spec.name: conform(next(streams[spec.name]), spec, where, first) for spec in inputs}
            yield Chunk(arrays=arrays, rows=min(rows, stop - first))


def _is_whole(array: StoredArray, spec: TensorSpec) -> bool:
    return spec.shape is not None and len(array.shape) == len(spec.shape) + 1


def _as_row(spec: TensorSpec, whole: set[str]) -> TensorSpec:
    """Returns the input as it is when rows run one at a time: a whole value fixes no batch size."""
    return replace(spec, shape=(None,)) if spec.name in whole else spec
