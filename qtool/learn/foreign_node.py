"""Runs a single node in onnxruntime, for operators that are not computed in torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import onnx_ir as ir
import torch

from qtool.runtime.graphs import open_graph
from qtool.runtime.session import Session


class ForeignNode:
    """One node as a graph of its own; its outputs have no gradient."""

    def __init__(self, node: ir.Node, opset_imports: dict[str, int], ir_version: int) -> None:
        """Takes the node; nothing is opened before the first run."""
        self._node = node
        self._opset_imports = opset_imports
        self._ir_version = ir_version
        self._sessions: dict[tuple[str, ...], Session] = {}
        self._open = ExitStack()

    def run(self, inputs: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
        """Returns the outputs, on the device of the first input.

        Raises:
            RuntimeRefusedError: onnxruntime does not run the node.
        """
        arrays = [None if value is None else self._array(index, value) for index, value in enumerate(inputs)]
        kinds = tuple("" if array is None else f"{array.dtype.name} {_lengths(array)}" for array in arrays)
        if kinds not in self._sessions:
            self._sessions[kinds] = self._open.enter_context(open_graph(self._graph(arrays)))
        feed = {f"i{index}": array for index, array in enumerate(arrays) if array is not None}
        results = self._sessions[kinds].run(feed)
        device = next((value.device for value in inputs if value is not None), torch.device("cpu"))
        names = [f"o{index}" for index, output in enumerate(self._node.outputs) if output.name]
        return tuple(torch.from_numpy(np.array(results[name])).to(device) for name in names)

    def close(self) -> None:
        """Closes the sessions."""
        self._open.close()

    def _array(self, index: int, value: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        array = value.detach().cpu().numpy()
        declared = self._node.inputs[index]
        dtype = None if declared is None else declared.dtype
        # Integers of a quantized tensor are held as floats.
        return array.astype(dtype.numpy()) if dtype is not None and dtype.is_integer() else array

    def _graph(self, arrays: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None]) -> ir.Model:
        given = [
            None
            if array is None
            else ir.Value(name=f"i{index}", type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
            for index, array in enumerate(arrays)
        ]
        for value, array in zip(given, arrays, strict=True):
            if value is not None and array is not None:
                value.shape = ir.Shape(_lengths(array))
        outputs = [ir.Value(name=f"o{index}" if own.name else "") for index, own in enumerate(self._node.outputs)]
        node = ir.Node(
            self._node.domain,
            self._node.op_type,
            given,
            list(self._node.attributes.values()),
            outputs=outputs,
            name="node",
        )
        inputs = [value for value in given if value is not None]
        named = [value for value in outputs if value.name]
        graph = ir.Graph(inputs, named, nodes=[node], opset_imports=self._opset_imports, name="node")
        return ir.Model(graph, ir_version=self._ir_version)


def _lengths(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> list[int | None]:
    """Returns the dimensions to declare: of shapes and indices as they are, for what is inferred of them."""
    return list(array.shape) if array.dtype.kind == "i" else [None] * array.ndim
