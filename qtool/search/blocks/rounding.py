"""Rounds the weights of a weight-only plan by each method, with the Hessians of the layers' inputs given data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.formats.onnx.onnx_file import weights_nbytes
from qtool.graph.constants import constant_array, has_rows_of_outputs
from qtool.plan import WeightOnlyPlan
from qtool.progress import Progress
from qtool.runtime.graphs import watching
from qtool.runtime.session import Watcher
from qtool.search.blocks.stored_blocks import StoredBlocks
from qtool.search.frugal_execution import is_large, open_frugally
from qtool.search.layer_columns import MOST_POSITIONS
from qtool.weights.awq import ScalableInput, awq_scales, fold_scales, scalable_inputs, scaled_hessian
from qtool.weights.blocks.choices import BlockMethod
from qtool.weights.blocks.gptq import gptq_blocks
from qtool.weights.blocks.quantization import BlockWeight, Matrix, rescaled_outputs, round_blocks
from qtool.weights.blocks.ranges import least_squares_blocks
from qtool.weights.channel_scaling import Floats
from qtool.weights.gptq_layer import curvature_of
from qtool.weights.input_hessian import LayerInput, gather_hessians, hessian_tensors, layer_inputs

# The Hessians that are held at once; others wait for another pass over the data.
HESSIAN_BYTES = 256 << 20
# A Hessian and what is made of it take a GB here.
MOST_INPUTS = 5120
# What rounding holds of the largest Hessian and the largest weight at once; the interpreter, and outputs in two forms.
_FORMS_OF_HESSIAN, _FORMS_OF_WEIGHT, _REST_BYTES = 5, 3, 450 << 20
# The tensors that cross a cut, and their parts that a layer is fitted to, float and quantized.
_HELD_IN_SEQUENCE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedBlocks:
    """Weights that were rounded with the inputs of their layers known.

    Attributes:
        weights: by method, then by name.
        places: the inputs that can be scaled.
        scales: by tensor, the factors that AWQ divides inputs by, (channels,).
    """

    weights: Mapping[BlockMethod, Mapping[str, BlockWeight]]
    places: tuple[ScalableInput, ...] = ()
    scales: Mapping[str, Floats] = field(default_factory=dict)

    def prepared(self, model: ir.Model, method: BlockMethod) -> ir.Model:
        """Returns a copy of ``model`` that the weights of ``method`` fit; its outputs are the same."""
        copy = model.clone()
        if method.scales_inputs:
            fold_scales(copy, self.places, self.scales)
        return copy


def rounding_bytes(model: ir.Model, plan: WeightOnlyPlan) -> int:
    """Returns about how much memory it takes to round the weights of ``plan`` with data, besides the model's file.

    That is a model in memory, and what onnxruntime makes of it, where it is not mapped; the Hessians and what the
    largest of them is turned into; the largest weight in several forms; and the outputs of the evaluation samples.
    """
    layers = layer_inputs(model, sole_layers(plan), shared_weights=True, most_inputs=MOST_INPUTS)
    hessians = {layer.tensor: layer.inputs**2 * np.dtype(np.float64).itemsize for layer in layers}
    hessian = max(hessians.values(), default=0)
    weight = max((stored.nbytes for name in plan.weights if (stored := _stored(model, name)) is not None), default=0)
    held = 0 if is_large(model) else 2 * weights_nbytes(model)
    gathered = min(sum(hessians.values()), HESSIAN_BYTES)
    widest = max((layer.inputs for layer in layers), default=0)
    held += 0 if is_large(model) else _HELD_IN_SEQUENCE * MOST_POSITIONS * widest * np.dtype(np.float32).itemsize
    return held + gathered + _FORMS_OF_HESSIAN * hessian + _FORMS_OF_WEIGHT * weight + _REST_BYTES


def rounded_to_nearest(model: ir.Model, plan: WeightOnlyPlan) -> dict[str, BlockWeight]:
    """Returns every weight of ``plan`` by round to nearest, by name.

    Raises:
        InputError: a weight holds NaN or infinity.
    """
    return {name: round_blocks(name, _matrix(model, name), item.grid) for name, item in plan.weights.items()}


def least_squares(model: ir.Model, plan: WeightOnlyPlan, progress: Progress) -> dict[str, BlockWeight]:
    """Returns every weight of ``plan`` on scales with the least squared error, by name.

    Raises:
        InputError: a weight holds NaN or infinity.
    """
    found = {}
    with progress.task("fitting scales", len(plan.weights)) as advance:
        for name, item in plan.weights.items():
            found[name] = least_squares_blocks(name, _matrix(model, name), item.grid)
            advance(1)
    return found


def guided_by_inputs(
    model: ir.Model,
    plan: WeightOnlyPlan,
    feeds: Callable[[], Iterable[Feed]],
    progress: Progress,
    folder: Path,
    *,
    methods: Collection[BlockMethod],
    scales: Mapping[str, Floats] | None = None,
    threads: int = 0,
) -> GuidedBlocks:
    """Returns every weight of ``plan`` by methods that use data: MSE weighted with the layers' inputs, GPTQ, AWQ.

    Weights of several layers, and of layers with very many inputs, are fitted without their inputs in all of them.

    Args:
        model: the prepared float model; not modified.
        plan: what to quantize.
        feeds: returns the calibration batches, once for every pass over them.
        progress: receives the steps.
        folder: where weights are kept.
        methods: which of MSE, GPTQ, AWQ and AWQ_GPTQ.
        scales: factors of inputs that were found before; None to search for them.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        InputError: a weight holds NaN or infinity.
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    layers = _by_tensor(layer_inputs(model, sole_layers(plan), shared_weights=True, most_inputs=MOST_INPUTS))
    found = {method: StoredBlocks(folder) for method in methods}
    rounder = _Rounder(model, plan, found, scales)
    with progress.task("rounding weights", len(plan.weights)) as advance:
        for group in _groups(layers):
            with watching(model, hessian_tensors(group)) as graph, open_frugally(graph, threads=threads) as session:
                hessians = gather_hessians(Watcher(session), feeds(), group)
            for tensor in hessian_tensors(group):
                readers = [layer for layer in group if layer.tensor == tensor]
                rounder.round(readers, hessians.pop(readers[0].node)[0])
                for layer in readers[1:]:
                    del hessians[layer.node]
                advance(len(readers))
        rounder.finish(advance)
    return GuidedBlocks(weights=found, places=rounder.places, scales=rounder.scales)


class _Rounder:
    """Rounds the weights of the layers that read one tensor, by every method."""

    def __init__(
        self,
        model: ir.Model,
        plan: WeightOnlyPlan,
        found: Mapping[BlockMethod, StoredBlocks],
        scales: Mapping[str, Floats] | None,
    ) -> None:
        self._model = model
        self._plan = plan
        self._found = found
        self._known = scales
        wanted = any(method.scales_inputs for method in found)
        self.places = scalable_inputs(model, sole_layers(plan)) if wanted else ()
        self._places = {place.tensor: place for place in self.places}
        self.scales: dict[str, Floats] = {}

    def round(self, readers: Sequence[LayerInput], hessian: Floats) -> None:
        """Rounds the weights of ``readers``, which read one tensor with the given Hessian."""
        matrices = {layer.weight: matrix_of(self._model, layer.weight) for layer in readers}
        plain = {False: (BlockMethod.MSE, BlockMethod.GPTQ), True: (BlockMethod.AWQ, BlockMethod.AWQ_GPTQ)}
        factors = self._factors(readers[0].tensor, matrices, hessian)
        for scaled in (False, True):
            fit, compensated = plain[scaled]
            if not {fit, compensated} & set(self._found):
                continue
            if scaled and factors is None and BlockMethod.GPTQ in self._found and BlockMethod.MSE in self._found:
                for name in matrices:
                    self._share(name)
                continue
            moments = scaled_hessian(hessian, factors) if scaled and factors is not None else hessian
            curvature = curvature_of(moments[np.newaxis]) if compensated in self._found else None
            for name, matrix in matrices.items():
                multiplied = (matrix * factors).astype(np.float32) if scaled and factors is not None else matrix
                fitted = least_squares_blocks(name, multiplied, self._plan.weights[name].grid, np.diagonal(moments))
                if fit in self._found:
                    self._found[fit].add(name, fitted)
                if curvature is not None:
                    self._found[compensated].add(name, gptq_blocks(multiplied, fitted, curvature))

    def finish(self, advance: Callable[[int], None]) -> None:
        """Rounds the weights without Hessians, and scales the outputs of layers in front of scaled inputs."""
        for name, item in self._plan.weights.items():
            if any(name not in stored for stored in self._found.values()):
                fitted = least_squares_blocks(name, matrix_of(self._model, name), item.grid)
                for stored in self._found.values():
                    stored.add(name, fitted)
                advance(1)
        nodes = {node.name: node for node in self._model.graph}
        for tensor, factors in self.scales.items():
            for producer in self._places[tensor].region.producers:
                value = nodes[producer].inputs[1]
                name = "" if value is None else value.name or ""
                for method, stored in self._found.items():
                    if method.scales_inputs and name in self._plan.weights:
                        stored.add(name, rescaled_outputs(stored[name], 1.0 / factors))

    def _factors(self, tensor: str, matrices: Mapping[str, Matrix], hessian: Floats) -> Floats | None:
        if tensor not in self._places:
            return None
        if self._known is not None:
            factors = self._known.get(tensor)
        else:
            grids = {name: self._plan.weights[name].grid for name in matrices}
            factors = awq_scales([(matrix, grids[name]) for name, matrix in matrices.items()], hessian)
        if factors is not None:
            self.scales[tensor] = factors
        return factors

    def _share(self, name: str) -> None:
        for plain, scaled in ((BlockMethod.MSE, BlockMethod.AWQ), (BlockMethod.GPTQ, BlockMethod.AWQ_GPTQ)):
            if scaled in self._found:
                self._found[scaled].share(name, self._found[plain])


def matrix_of(model: ir.Model, name: str) -> Matrix:
    """Returns a weight of layers, or an embedding table, float32, (outputs, inputs) or (rows, columns), contiguous."""
    return np.ascontiguousarray(_matrix(model, name))


def _matrix(model: ir.Model, name: str) -> Matrix:
    """Returns the same as it is stored, which may be transposed."""
    value = model.graph.initializers[name]
    array = constant_array(value)
    if array is None:
        raise AssertionError(f"the plan takes {name} for a weight")
    turned = any(has_rows_of_outputs(use.node) for use in value.uses())
    return array if turned else array.T


def _stored(model: ir.Model, name: str) -> ir.TensorProtocol | None:
    return model.graph.initializers[name].const_value


def sole_layers(plan: WeightOnlyPlan) -> frozenset[str]:
    """Returns the layers that have an integer weight for themselves."""
    return frozenset(item.nodes[0] for item in plan.weights.values() if len(item.nodes) == 1)


def _by_tensor(layers: Sequence[LayerInput]) -> list[LayerInput]:
    """Brings layers with one input together, in graph order of the first."""
    order = {tensor: place for place, tensor in enumerate(hessian_tensors(layers))}
    return sorted(layers, key=lambda layer: order[layer.tensor])


def _groups(layers: Sequence[LayerInput]) -> Iterator[list[LayerInput]]:
    """Divides layers into groups whose Hessians fit into memory together; layers with one input share theirs."""
    group: list[LayerInput] = []
    sizes: dict[str, int] = {}
    for layer in layers:
        size = layer.inputs * layer.inputs * np.dtype(np.float64).itemsize
        if layer.tensor not in sizes and group and sum(sizes.values()) + size > HESSIAN_BYTES:
            yield group
            group, sizes = [], {}
        sizes[layer.tensor] = size
        group.append(layer)
    if group:
        yield group
