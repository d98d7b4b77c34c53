"""Rounds the weights of a weight-only plan by each method, with the Hessians of the layers' inputs given data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.graph.constants import constant_array, has_rows_of_outputs
from qtool.plan import WeightOnlyPlan
from qtool.progress import Progress
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Watcher
from qtool.weights.block_gptq import gptq_blocks
from qtool.weights.block_quantization import BlockWeight, Matrix, round_blocks
from qtool.weights.block_ranges import least_squares_blocks
from qtool.weights.gptq_layer import curvature_of
from qtool.weights.input_hessian import LayerInput, gather_hessians, hessian_tensors, layer_inputs

# The Hessians that are held at once; others wait for another pass over the data.
_MOST_BYTES = 512 << 20


def rounded_to_nearest(model: ir.Model, plan: WeightOnlyPlan) -> dict[str, BlockWeight]:
    """Returns every weight of ``plan`` by round to nearest, by name.

    Raises:
        InputError: a weight holds NaN or infinity.
    """
    return {name: round_blocks(name, matrix_of(model, name), item.grid) for name, item in plan.weights.items()}


def least_squares(model: ir.Model, plan: WeightOnlyPlan, progress: Progress) -> dict[str, BlockWeight]:
    """Returns every weight of ``plan`` on scales with the least squared error, by name.

    Raises:
        InputError: a weight holds NaN or infinity.
    """
    found = {}
    with progress.task("fitting scales", len(plan.weights)) as advance:
        for name, item in plan.weights.items():
            found[name] = least_squares_blocks(name, matrix_of(model, name), item.grid)
            advance(1)
    return found


def guided_by_inputs(
    model: ir.Model,
    plan: WeightOnlyPlan,
    feeds: Callable[[], Iterable[Feed]],
    progress: Progress,
    *,
    threads: int = 0,
) -> tuple[dict[str, BlockWeight], dict[str, BlockWeight]]:
    """Returns every weight of ``plan`` by name, by MSE weighted with the layers' inputs, and by GPTQ after it.

    Weights of several layers, and of layers with very many inputs, are fitted without their inputs in both.

    Args:
        model: the prepared float model; not modified.
        plan: what to quantize.
        feeds: returns the calibration batches, once for every pass over them.
        progress: receives the steps.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        InputError: a weight holds NaN or infinity.
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    layers = layer_inputs(model, plan.layers)
    fitted: dict[str, BlockWeight] = {}
    rounded: dict[str, BlockWeight] = {}
    with progress.task("rounding weights", len(plan.weights)) as advance:
        for group in _groups(layers):
            with watching(model, hessian_tensors(group)) as graph, open_graph(graph, threads=threads) as session:
                hessians = gather_hessians(Watcher(session), feeds(), group)
            for layer in group:
                name, hessian = layer.weight, hessians[layer.node]
                matrix = matrix_of(model, name)
                fitted[name] = _fitted(name, matrix, plan, hessian[0])
                rounded[name] = gptq_blocks(matrix, fitted[name], curvature_of(hessian))
                advance(1)
        for name, item in plan.weights.items():
            if name not in fitted:
                fitted[name] = rounded[name] = least_squares_blocks(name, matrix_of(model, name), item.grid)
                advance(1)
    return fitted, rounded


def matrix_of(model: ir.Model, name: str) -> Matrix:
    """Returns a weight of layers, or an embedding table, float32, (outputs, inputs) or (rows, columns)."""
    value = model.graph.initializers[name]
    array = constant_array(value)
    if array is None:
        raise AssertionError(f"the plan takes {name} for a weight")
    turned = any(has_rows_of_outputs(use.node) for use in value.uses())
    return np.ascontiguousarray(array if turned else array.T)


def _fitted(name: str, matrix: Matrix, plan: WeightOnlyPlan, hessian: npt.NDArray[np.float64]) -> BlockWeight:
    return least_squares_blocks(name, matrix, plan.weights[name].grid, np.diagonal(hessian))


def _groups(layers: Sequence[LayerInput]) -> Iterator[list[LayerInput]]:
    """Divides layers into groups whose Hessians fit into memory together; layers with one input share theirs."""
    group: list[LayerInput] = []
    sizes: dict[str, int] = {}
    for layer in layers:
        size = layer.inputs * layer.inputs * np.dtype(np.float64).itemsize
        if layer.tensor not in sizes and group and sum(sizes.values()) + size > _MOST_BYTES:
            yield group
            group, sizes = [], {}
        sizes[layer.tensor] = size
        group.append(layer)
    if group:
        yield group
