"""A graph in a form that can be pickled, and whose large weights need not be copied to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from qtool.calib.specs import Array
from qtool.runtime.graphs import apart


@dataclass(frozen=True, slots=True)
class PackedModel:
    """Holds a graph.

    Attributes:
        message: the graph as protobuf, without its large weights.
        weights: these by name.
    """

    message: bytes
    weights: Mapping[str, Array]

    @staticmethod
    def of(model: ir.Model) -> PackedModel:
        """Packs ``model``, which is not modified."""
        return PackedModel(*apart(model))

    def unpacked(self) -> ir.Model:
        """Returns a new graph, whose weights are those of this object."""
        model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(self.message))
        for name, array in self.weights.items():
            model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
        return model
