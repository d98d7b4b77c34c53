"""Propagates the shapes of a feed through a graph, which does not run."""

from __future__ import annotations

import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.formats.onnx.shape_inference import infer_shapes
from qtool.graph.tensor_sizes import TensorSize, declared_sizes


def fed_sizes(model: ir.Model, feed: Feed) -> dict[str, TensorSize]:
    """Returns the sizes that tensors have where ``feed`` goes in, as far as the onnx package can tell, by name.

    ``model`` is left as it is.
    """
    known = model.clone()
    for value in known.graph.inputs:
        fed = feed.get(value.name or "")
        if fed is not None:
            value.shape = ir.Shape(fed.shape)
    for node in known.graph:
        for value in node.outputs:
            value.shape = None
    infer_shapes(known)
    return declared_sizes(known)
