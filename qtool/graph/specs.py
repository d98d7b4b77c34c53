"""Describes the inputs and outputs of a graph: names, types and shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import TensorSpec
from qtool.graph.decoder_caches import head_size
from qtool.image_layout import image_layout


def specs_of(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """Describes inputs or outputs of a graph."""
    specs = []
    for value in values:
        shape = None
        if value.shape is not None:
            shape = tuple(_length(dim) for dim in value.shape)
            if shape and not isinstance(shape[-1], int) and (size := head_size(value)) is not None:
                shape = (*shape[:-1], size)
        dtype = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
        specs.append(TensorSpec(value.name or "", dtype, shape, image_layout(value)))
    return tuple(specs)


def _length(dim: int | ir.SymbolicDim) -> int | str | None:
    """Returns a fixed dimension, the name of a symbolic one, or None; some exporters write -1 for unknown ones."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value


def model_specs(model: ir.Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Describes the inputs that data must fill, which leaves out those with a default, and the outputs."""
    fed = [value for value in model.graph.inputs if not value.is_initializer()]
    return specs_of(fed), specs_of(model.graph.outputs)


def dtype_name(value: ir.Value) -> str | None:
    """Returns the element type of a tensor as numpy calls it; None where it is not known."""
    name = None if value.dtype is None else value.dtype.name.lower()
    return {"float": "float32", "double": "float64"}.get(name, name) if name else None
