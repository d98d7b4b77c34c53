"""Tensors of ONNX models that stay in their files until they are used."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.formats.mapped_file import MappedFile

# Smaller tensors are read at once: there are many of them, and shapes and scales are looked at again and again.
_SMALLEST_LEFT_IN_FILE_BYTES = 1 << 20
_BITS_OF_BYTE = 8


class WeightFile:
    """A file with tensors, the model itself or one beside it; mapped when the first of them is used.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        """Takes the path of a file that has been checked."""
        self.path = path

    @cached_property
    def mapped(self) -> MappedFile:
        """The file, mapped into memory.

        Raises:
            OSError: it cannot be read.
        """
        return MappedFile.at(self.path)


class StoredTensor(ir.LazyTensor):
    """A tensor in a file: each use maps its pages, and they are released when nothing holds its array any more.

    Attributes:
        file: where it is.
    """

    __slots__ = ("_offset", "file")

    def __init__(self, file: WeightFile, tensor: ir.ExternalTensor) -> None:
        """Takes the place, type and shape of ``tensor``, whose values have to be in ``file``."""
        super().__init__(
            self._mapped,
            tensor.dtype,
            tensor.shape,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
        self.file = file
        self._offset = tensor.offset or 0

    def tofile(self, file: Any) -> None:
        """Writes the bytes to an open file; from file to file, they do not pass through this process."""
        # Without a folder, onnx-ir does not check again what was checked when the model was read.
        ir.ExternalTensor(
            str(self.file.path), self._offset, self.nbytes, self.dtype, shape=self.shape, name=self.name or ""
        ).tofile(file)

    def _mapped(self) -> ir.TensorProtocol:
        if self.dtype.bitwidth < _BITS_OF_BYTE:
            packed = self.file.mapped.array(self._offset, np.dtype(np.uint8), self.nbytes)
            return ir.PackedTensor(packed, self.dtype, shape=self.shape, name=self.name)
        dtype = np.dtype(self.dtype.numpy()).newbyteorder("<")
        array = self.file.mapped.array(self._offset, dtype, self.size).reshape(self.shape.numpy())
        return ir.Tensor(array, dtype=self.dtype, shape=self.shape, name=self.name)


def leave_in_files(model: ir.Model) -> None:
    """Replaces external tensors of the graphs: large ones stay in their files, and small ones are read now.

    Raises:
        OSError: a file cannot be read.
    """
    files: dict[str, WeightFile] = {}
    real: dict[Path, WeightFile] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            if (named := str(tensor.path)) not in files:
                path = Path(named).resolve()
                files[named] = real.setdefault(path, WeightFile(path))
            stored = StoredTensor(files[named], tensor)
            value.const_value = stored if stored.nbytes >= _SMALLEST_LEFT_IN_FILE_BYTES else _read(stored)


def _read(stored: StoredTensor) -> ir.TensorProtocol:
    if stored.dtype.bitwidth < _BITS_OF_BYTE:
        packed = np.frombuffer(stored.tobytes(), np.uint8)
        return ir.PackedTensor(packed, stored.dtype, shape=stored.shape, name=stored.name)
    return ir.Tensor(np.array(stored.numpy()), dtype=stored.dtype, shape=stored.shape, name=stored.name)
