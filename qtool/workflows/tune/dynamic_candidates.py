"""Makes dynamically quantized forms of one prepared float model, layer by layer in different ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.backends.registry import backend_named
from qtool.dynamic_quantizer import quantize_recurrent
from qtool.graph.constants import constant_array
from qtool.graph.unpacked_product import INTEGER_LEVEL
from qtool.plan import DynamicPlan, Skipped, WeightOnlyPlan
from qtool.qdq.insert_blocks import insert_blocks
from qtool.qdq.insert_dynamic import insert_dynamic
from qtool.schemes import DynamicScheme
from qtool.search.activation_forms import BLOCK, ActivationForm
from qtool.search.blocks.rounding import matrix_of
from qtool.weights.blocks.choices import WeightFormat
from qtool.weights.blocks.grid import BlockGrid
from qtool.weights.blocks.quantization import BlockWeight, Matrix, round_blocks
from qtool.weights.round_to_nearest import QuantizedWeight
from qtool.weights.rounding import WeightRounding

_ROUND_TO_NEAREST = WeightRounding()
_GRID = BlockGrid(bits=8, block=BLOCK, symmetric=True)
# Weights that are widened at once.
_MOST_WIDENED_VALUES = 1 << 22


class DynamicCandidates:
    """Makes quantized models; weights are rounded once for each form.

    Attributes:
        model: the prepared float model; not modified.
        plan: the layers that may be dynamic.
    """

    def __init__(self, model: ir.Model, plan: DynamicPlan, scheme: DynamicScheme) -> None:
        """Takes what to quantize."""
        self.model = model
        self.plan = plan
        self._scheme = scheme
        self._rounded: dict[str, QuantizedWeight] = {}
        self._blocks: dict[str, BlockWeight] = {}

    def __call__(self, forms: Mapping[str, ActivationForm]) -> ir.Model:
        """Returns a new quantized model; layers that ``forms`` does not name get one scale a tensor.

        Raises:
            InputError: a weight holds NaN or infinity.
        """
        model = self.model.clone()
        self.quantize(model, forms)
        backend_named(self._scheme.backend).finish(model, self._scheme)
        return model

    def quantize(self, model: ir.Model, forms: Mapping[str, ActivationForm]) -> dict[str, QuantizedWeight]:
        """Quantizes ``model``, a copy, in place, and returns the weights of layers with one scale a tensor, by name.

        Raises:
            InputError: a weight holds NaN or infinity.
        """
        blocks, tensors = self.block_plan(model, forms), self.tensor_plan(forms)
        for name, weight in tensors.weights.items():
            if name not in self._rounded:
                array = constant_array(model.graph.initializers[name])
                if array is None:
                    raise AssertionError(f"the plan takes {name} for a weight")
                self._rounded[name] = _ROUND_TO_NEAREST(array, weight, bias=None)
        rounded = {name: self._rounded[name] for name in tensors.weights}
        if blocks.layers:
            for name in blocks.weights:
                if name not in self._blocks:
                    self._blocks[name] = _rounded(name, matrix_of(model, name))
            levels = dict.fromkeys(blocks.layers, INTEGER_LEVEL)
            insert_blocks(model, blocks, self._blocks, form=WeightFormat.NBITS, levels=levels)
        insert_dynamic(model, tensors, rounded)
        quantize_recurrent(model, tensors)
        return rounded

    def forget(self) -> None:
        """Drops the integers of weights, which are made again when they are needed."""
        self._rounded.clear()
        self._blocks.clear()

    def tensor_plan(self, forms: Mapping[str, ActivationForm]) -> DynamicPlan:
        """Returns the plan of the layers with one scale a tensor, and of those that stay float."""
        layers = {
            name: operator
            for name, operator in self.plan.integer_nodes.items()
            if forms.get(name, ActivationForm.PER_TENSOR) is ActivationForm.PER_TENSOR
        }
        weights = {}
        for name, weight in self.plan.weights.items():
            readers = tuple(node for node in weight.nodes if node in layers)
            if readers:
                weights[name] = replace(weight, nodes=readers)
        floats = tuple(
            Skipped(
                node=name,
                operator=operator,
                reason="kept float for accuracy: rounding its activations alone costs too much",
            )
            for name, operator in self.plan.integer_nodes.items()
            if forms.get(name) is ActivationForm.FLOAT
        )
        recurrent = {name: layer for name, layer in self.plan.recurrent.items() if name in layers}
        return DynamicPlan(
            weights=weights, integer_nodes=layers, skipped=(*self.plan.skipped, *floats), recurrent=recurrent
        )

    def block_plan(self, model: ir.Model, forms: Mapping[str, ActivationForm]) -> WeightOnlyPlan:
        """Returns the plan of the layers whose activations are rounded in blocks."""
        wanted = {name for name, form in forms.items() if form is ActivationForm.PER_BLOCK}

        def reason_to_skip(node: ir.Node) -> str | None:
            return None if node.name in wanted else "it is not to have blocks"

        return backend_named(self._scheme.backend).place_weights(model.graph, _GRID, reason_to_skip)


def _rounded(name: str, matrix: Matrix) -> BlockWeight:
    """Rounds the rows of a weight, (outputs, inputs), some at a time: rounding widens them to float64.

    Raises:
        InputError: the weight holds NaN or infinity.
    """
    rows = max(_MOST_WIDENED_VALUES // max(matrix.shape[1], 1), 1)
    parts = [round_blocks(name, matrix[first : first + rows], _GRID) for first in range(0, len(matrix), rows)]
    return BlockWeight(
        integers=np.concatenate([part.integers for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        zero_points=np.concatenate([part.zero_points for part in parts]),
        grid=_GRID,
    )
