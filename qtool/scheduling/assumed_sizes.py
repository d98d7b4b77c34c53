"""Describes how large tensors of free dimensions are, roughly, where only their order matters."""

from __future__ import annotations

import onnx_ir as ir

from qtool.formats.onnx.shape_inference import infer_shapes
from qtool.graph.node_reads import read_by
from qtool.graph.tensor_sizes import TensorSize, declared_sizes

# One sample; free lengths of text, sound and images are about this, which divides by what networks divide by.
_SAMPLES, _LENGTH = 1, 64


def assumed_sizes(model: ir.Model) -> dict[str, TensorSize]:
    """Returns a size for every tensor of ``model``, which is not modified.

    A free first dimension of an input is one sample, another one 64 long. A tensor of which shape inference still says
    nothing is as large as the largest one that its node reads.
    """
    copy = model.clone()
    lengths: dict[str, int] = {}
    for value in copy.graph.inputs:
        if value.shape is None:
            continue
        dims = []
        for axis, dim in enumerate(value.shape):
            usual = _LENGTH if axis else _SAMPLES
            fixed = dim if isinstance(dim, int) and dim >= 0 else None
            name = None if isinstance(dim, int) else dim.value
            dims.append(fixed if fixed is not None else usual if name is None else lengths.setdefault(name, usual))
        value.shape = ir.Shape(dims)
    for node in copy.graph.all_nodes():
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape(
                    [dim if isinstance(dim, int) and dim >= 0 else _length(dim, lengths) for dim in value.shape]
                )
    infer_shapes(copy)
    sizes = declared_sizes(copy)
    for node in copy.graph:
        known = [size for value in read_by(node) if (size := sizes.get(value.name or "")) and value.const_value is None]
        if known:
            largest = max(known, key=lambda size: size.nbytes)
            for value in node.outputs:
                sizes.setdefault(value.name or "", largest)
    return sizes


def _length(dim: int | ir.SymbolicDim, lengths: dict[str, int]) -> int | None:
    return None if isinstance(dim, int) else lengths.get(dim.value or "")
