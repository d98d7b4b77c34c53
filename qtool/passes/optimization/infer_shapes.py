"""Infers the types and shapes that the other passes use."""

from __future__ import annotations

import onnx_ir as ir

from qtool.formats.onnx.shape_inference import infer_shapes
from qtool.graph.declared_lengths import MADE_UP


class InferShapes(ir.passes.InPlacePass):
    """Runs the shape inference of the onnx package, which skips unknown operators."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Infers again without generated names of lengths; counts as a change where more is known then."""
        before = _known(model)
        _forget(model)
        infer_shapes(model)
        return ir.passes.PassResult(model, modified=_known(model) > before)


def _forget(model: ir.Model) -> None:
    """Removes generated names of lengths, which would hide newer information."""
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None or value.is_graph_output():
                continue
            dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
            if any(isinstance(dim, str) and MADE_UP.fullmatch(dim) for dim in dims):
                kept = [None if isinstance(dim, str) and MADE_UP.fullmatch(dim) else dim for dim in dims]
                value.shape = ir.Shape(kept)


def _known(model: ir.Model) -> int:
    """Counts what is known: types, ranks and lengths that are fixed or named by the model's author."""
    known = 0
    for value in (value for node in model.graph for value in node.outputs):
        known += value.type is not None
        if value.shape is not None:
            known += 1 + sum(isinstance(dim, int) for dim in value.shape)
    return known
