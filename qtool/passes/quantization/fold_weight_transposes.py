"""Stores weights the way their node reads them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, sole_consumer
from qtool.graph.names import Names
from qtool.graph.weight_records import Rearranged, record_steps


class FoldWeightTransposes(ir.passes.InPlacePass):
    """Replaces Transpose(weight), read by one node, by the transposed weight; a tied weight stays one tensor."""

    readers: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Folds each such Transpose."""
        modified = False
        names = Names(model.graph)
        for node in list(model.graph):
            if node.op_type != "Transpose" or node.domain != "":
                continue
            source, target = node.inputs[0], node.outputs[0]
            array, reader = constant_array(source), sole_consumer(target)
            if source is None or array is None or reader is None or reader.op_type not in self.readers:
                continue
            if not self.may_fold(source, node):
                continue
            permutation = node.attributes.get("perm")
            order = tuple(permutation.as_ints()) if permutation is not None else tuple(reversed(range(array.ndim)))
            transposed = np.transpose(array, order)
            folded = add_constant(model.graph, f"{source.name}_transposed", transposed, names=names)
            record_steps(folded, source, Rearranged(shape=array.shape, order=order))
            target.replace_all_uses_with(folded)
            model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified=modified)

    def may_fold(self, weight: ir.Value, transpose: ir.Node) -> bool:
        """Returns whether a weight may be stored transposed for the reader of ``transpose``."""
        return sole_consumer(weight) is transpose
