"""Estimates what products lose whose activations MatMulNBits rounds to 8 bits.

The kernel gives each row of activations a scale for every block of its inputs, symmetric, as its sources say
(https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/mlas/lib/sqnbitgemm.cpp, int8 compute).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.calib.specs import Array, Feed
from qtool.plan import WeightOnlyPlan
from qtool.runtime.graphs import watching
from qtool.runtime.session import Watcher
from qtool.search.blocks.rounding import matrix_of
from qtool.search.frugal_execution import open_frugally

_HIGHEST = 127.0
# Rows of a batch that are looked at, evenly spread.
_ROWS = 64


def activation_noise(
    model: ir.Model, plan: WeightOnlyPlan, feeds: Iterable[Feed], *, threads: int = 0
) -> dict[str, float]:
    """Returns the noise power of each product over its signal, where its activations are rounded to 8 bits.

    Args:
        model: the prepared float model; not modified.
        plan: the layers, of which those that multiply are measured.
        feeds: batches.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    weights = {node: item for item in plan.weights.values() for node in item.nodes if plan.layers[node] != "Gather"}
    nodes = {node.name: node for node in model.graph if node.name in weights}
    inputs = {name: (node.inputs[0].name or "") if node.inputs[0] is not None else "" for name, node in nodes.items()}
    noise, signal = dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0.0)
    with (
        watching(model, tuple(dict.fromkeys(inputs.values()))) as graph,
        open_frugally(graph, threads=threads) as session,
    ):
        watcher = Watcher(session)
        for feed in feeds:
            values = watcher.run(feed)
            for name, item in weights.items():
                rows = values[inputs[name]].reshape(-1, values[inputs[name]].shape[-1])
                rows = rows[:: max(len(rows) // _ROWS, 1)]
                matrix = matrix_of(model, item.tensor)
                error = rows - _rounded(rows, item.grid.length(matrix.shape[1]))
                lengths = np.square(matrix).sum(axis=0, dtype=np.float64)
                # Errors of different inputs are independent.
                noise[name] += float((np.square(error, dtype=np.float64) @ lengths).sum())
                signal[name] += float(np.square(rows @ matrix.T, dtype=np.float64).sum())
    return {name: noise[name] / max(signal[name], 1e-300) for name in weights}


def _rounded(rows: Array, block: int) -> npt.NDArray[np.float32]:
    padded = np.pad(rows, [(0, 0), (0, -rows.shape[1] % block)]).reshape(len(rows), -1, block)
    scales = np.maximum(np.abs(padded).max(axis=2, keepdims=True) / _HIGHEST, np.finfo(np.float32).tiny)
    found: npt.NDArray[np.float32] = (np.rint(padded / scales) * scales).reshape(len(rows), -1)[:, : rows.shape[1]]
    return found
