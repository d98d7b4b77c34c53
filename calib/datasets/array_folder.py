"""A folder of ``.npy`` and ``.npz`` files: each file one sample, one feed or several samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qtool.calib.datasets.arranging import Arrangement, arrange
from qtool.calib.datasets.array_file import row_chunks
from qtool.calib.datasets.base import Remark
from qtool.calib.datasets.batching import Chunk, Window, batches, window_for
from qtool.calib.datasets.listing import side_array
from qtool.calib.datasets.matching import check_dtype, check_names, conform, only_input
from qtool.calib.datasets.stored import StoredArray, open_arrays
from qtool.calib.errors import CalibError
from qtool.calib.specs import Array, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """One file's arrays: by input name once they are matched; before that a bare ``.npy`` has the empty name."""

    where: str
    arrays: Mapping[str, StoredArray]


class ArrayFolder:
    """Streams the arrays of many files in the natural order of their names; shapes may differ between files.

    How many samples a file holds follows from the rank of the model's input: see ``arrange``.
    """

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        """Reads the headers of all arrays, without their values.

        Args:
            folder: the folder, for labels stored next to the samples.
            files: its sample files, in order.

        Raises:
            CalibError: a file is damaged or holds Python objects.
        """
        self._folder = folder
        self._files = [_opened(folder, path) for path in files]

    @property
    def count(self) -> int | None:
        """None: whether a file is one sample or several depends on the model."""
        return None

    def specs(self) -> tuple[TensorSpec, ...]:
        """Describes the arrays that all files have, with the first axis for the samples."""
        shared = [
            name
            for name, array in self._files[0].arrays.items()
            if not name.startswith("_") and array.shape and all(name in file.arrays for file in self._files)
        ]
        return tuple(self._spec(name) for name in shared)

    def array(self, name: str) -> Array | None:
        """Concatenates an array that every file has, or loads ``NAME.npy`` next to the samples.

        Raises:
            CalibError: only some files have it, or their shapes do not match.
        """
        beside = side_array(self._folder, name)
        if beside is not None:
            return beside
        have = [file for file in self._files if name in file.arrays]
        if not have:
            return None
        if len(have) < len(self._files):
            lacking = next(file.where for file in self._files if name not in file.arrays)
            raise CalibError(f"no array '{name}' in {lacking}", fix="store it in every file of the folder, or in none")
        parts = [np.atleast_1d(file.arrays[name].load()) for file in have]
        if len({part.shape[1:] for part in parts}) > 1:
            raise CalibError(
                f"the arrays '{name}' in {self._folder} differ in shape", fix="store rows of the same shape"
            )
        return np.concatenate(parts)

    def feeds(
        self,
        inputs: Sequence[TensorSpec],
        *,
        batch_size: int = 1,
        limit: int | None = None,
        skip: int = 0,
        remark: Remark | None = None,
    ) -> Iterator[dict[str, Array]]:
        """Streams batches of samples of the same shape; see ``Dataset.feeds``."""
        plan = [_matched(file, inputs, batch_size) for file in self._files]
        count = sum(1 if arrangement.rows is None else arrangement.rows for _, arrangement in plan)
        where = self._folder.name
        window = window_for(inputs, batch_size=batch_size, limit=limit, skip=skip, count=count, where=where)
        return batches(_chunks(plan, inputs, window, window.stop(count)), window, where=where, remark=remark)

    def _spec(self, name: str) -> TensorSpec:
        arrays = [file.arrays[name] for file in self._files]
        first = arrays[0]
        if any(len(array.shape) != len(first.shape) for array in arrays):
            return TensorSpec(name, first.dtype, None)
        lengths = [{array.shape[axis] for array in arrays} for axis in range(1, len(first.shape))]
        return TensorSpec(name, first.dtype, (None, *(seen.pop() if len(seen) == 1 else None for seen in lengths)))


def _opened(folder: Path, path: Path) -> _File:
    return _File(where=path.relative_to(folder.parent).as_posix(), arrays=open_arrays(path))


def _matched(file: _File, inputs: Sequence[TensorSpec], batch_size: int) -> tuple[_File, Arrangement]:
    if "" in file.arrays:
        arrays = {only_input(inputs, file.where).name: file.arrays[""]}
    else:
        check_names(inputs, file.arrays, file.where)
        arrays = {spec.name: file.arrays[spec.name] for spec in inputs}
    for spec in inputs:
        check_dtype(arrays[spec.name].dtype, spec, file.where)
    shapes = {name: array.shape for name, array in arrays.items()}
    arrangement = arrange(shapes, inputs, batch_size=batch_size, where=file.where)
    return _File(where=file.where, arrays=arrays), arrangement


def _chunks(
    plan: Sequence[tuple[_File, Arrangement]], inputs: Sequence[TensorSpec], window: Window, stop: int
) -> Iterator[Chunk]:
    position = 0
    for file, arrangement in plan:
        rows = 1 if arrangement.rows is None else arrangement.rows
        first, last = max(window.skip - position, 0), min(rows, stop - position)
        position += rows
        if first >= last:
            continue
        if arrangement.rows is None or arrangement.lifted:
            arrays = {
                spec.name: conform(
                    arrangement.apply(spec.name, file.arrays[spec.name].load()), spec, file.where, sample=0
                )
                for spec in inputs
            }
            yield Chunk(arrays=arrays, rows=arrangement.rows)
        else:
            yield from row_chunks(file.arrays, inputs, start=first, stop=last, rows=window.batch_size, where=file.where)
