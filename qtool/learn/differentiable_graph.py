"""Runs graphs of ONNX in torch, so that gradients reach their constants.

Converters of whole models to torch modules exist (onnx2torch, not maintained since 2024; onnx2pytorch, which needs
torchvision and rounds without a gradient); here constants can be replaced by what is learned, quantization has the
straight-through estimator, and an operator that is not known runs in onnxruntime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.graph.constants import constant_array
from qtool.learn.foreign_node import ForeignNode
from qtool.learn.operators.calls import Call, Operator
from qtool.learn.operators.registry import OPERATORS

Values = dict[str, torch.Tensor]

_SHORT = frozenset({"int4", "uint4"})


class DifferentiableGraph:
    """The nodes of one graph, in order, as functions of torch tensors.

    Attributes:
        foreign: operator type by name of the nodes that run in onnxruntime; they have no gradient. It grows as nodes
            turn out to have a form that is not computed in torch.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        device: torch.device | None = None,
        nodes: Iterable[ir.Node] | None = None,
    ) -> None:
        """Reads the constants of ``model``, which is not modified and has to stay alive.

        Args:
            model: the graph.
            device: where to compute; the processor where it is None.
            nodes: only these nodes, in order, all by default.
        """
        self._device = device or torch.device("cpu")
        self._nodes = list(model.graph if nodes is None else nodes)
        self._versions = dict(model.opset_imports)
        self._ir_version = model.ir_version
        self._constants: Values = {}
        self._calls: dict[ir.Node, Call] = {}
        self._foreign: dict[ir.Node, ForeignNode] = {}
        self.foreign: dict[str, str] = {}
        for node in self._nodes:
            self._read(node)

    def run(
        self, feed: Mapping[str, torch.Tensor], wanted: Sequence[str], replaced: Mapping[str, torch.Tensor]
    ) -> Values:
        """Returns the tensors called ``wanted``.

        Args:
            feed: values by name of everything that comes from outside.
            wanted: names of values.
            replaced: what stands in the place of stored constants, by name.

        Raises:
            RuntimeRefusedError: onnxruntime does not run a node that torch does not.
        """
        return self._run(self._nodes, {**self._constants, **replaced, **feed}, wanted)

    def close(self) -> None:
        """Closes what runs in onnxruntime."""
        for node in self._foreign.values():
            node.close()

    def _run(self, nodes: Sequence[ir.Node], values: Values, wanted: Sequence[str]) -> Values:
        left = Counter(name for node in nodes for name in _read_by(node))
        kept = set(wanted)
        for node in nodes:
            if all(output.name in values for output in node.outputs):
                continue  # handed in from outside
            for output, value in zip(node.outputs, self._outputs(node, values), strict=False):
                if output.name and value is not None:
                    values[output.name] = value
            for name in _read_by(node):
                left[name] -= 1
                if not left[name] and name not in kept:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}

    def _outputs(self, node: ir.Node, values: Values) -> tuple[torch.Tensor | None, ...]:
        if node.op_type == "If":
            return self._branch(node, values)
        inputs = [None if value is None else values[value.name or ""] for value in node.inputs]
        operator = self._operator(node)
        if operator is not None:
            try:
                found = operator(self._calls[node], inputs)
            except LookupError:
                self._leave_to_onnxruntime(node)
            else:
                return found if isinstance(found, tuple) else (found,)
        results = iter(self._foreign[node].run(inputs))
        return tuple(next(results) if output.name else None for output in node.outputs)

    def _branch(self, node: ir.Node, values: Values) -> tuple[torch.Tensor | None, ...]:
        condition = node.inputs[0]
        chosen = "then_branch" if bool(values[condition.name or ""] if condition else False) else "else_branch"
        graph = node.attributes[chosen].as_graph()
        names = [output.name or "" for output in graph.outputs]
        found = self._run(list(graph), dict(values), names)
        return tuple(found[name] for name in names)

    def _operator(self, node: ir.Node) -> Operator | None:
        return None if node in self._foreign else OPERATORS.get(_kind(node))

    def _leave_to_onnxruntime(self, node: ir.Node) -> None:
        self._foreign[node] = ForeignNode(node, self._versions, self._ir_version)
        self.foreign[node.name or ""] = node.op_type

    def _read(self, node: ir.Node) -> None:
        attributes = {name: _plain(attribute) for name, attribute in node.attributes.items()}
        self._calls[node] = Call(attributes=attributes, outputs=len(node.outputs))
        if node.op_type == "Constant":
            self._constants[node.outputs[0].name or ""] = self._tensor(_constant_of(attributes))
        elif _kind(node) not in OPERATORS and node.op_type != "If":
            self._leave_to_onnxruntime(node)
        for value in node.inputs:
            self._store(value)
        for graph in _subgraphs(node):
            for value in graph.outputs:
                self._store(value)
            for inner in graph:
                self._read(inner)

    def _store(self, value: ir.Value | None) -> None:
        if value is not None and value.name and value.name not in self._constants:
            array = constant_array(value)
            if array is not None:
                self._constants[value.name] = self._tensor(array)

    def _tensor(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        # Neither has torch integers of 4 bits.
        array = np.array(array, np.int8 if array.dtype.name in _SHORT else array.dtype, order="C")
        tensor = torch.from_numpy(array)
        # Shapes and indices are read on the processor.
        return tensor.to(self._device) if array.dtype.kind == "f" else tensor


def _kind(node: ir.Node) -> str:
    return node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}"


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            yield attribute.as_graph()


def _read_by(node: ir.Node) -> Iterator[str]:
    """Yields the names of the values that a node reads, in its subgraphs too."""
    yield from (value.name for value in node.inputs if value is not None and value.name)
    for graph in _subgraphs(node):
        yield from (value.name for value in graph.outputs if value.name)
        for inner in graph:
            yield from _read_by(inner)


def _plain(attribute: ir.Attr) -> Any:
    value = attribute.value
    return value.numpy() if attribute.type is ir.AttributeType.TENSOR else value


def _constant_of(attributes: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    for name, read in _CONSTANTS.items():
        if name in attributes:
            return read(attributes[name])
    raise LookupError("a constant has no value that is known")


_CONSTANTS: Mapping[str, Callable[[Any], np.ndarray[Any, Any]]] = {
    "value": np.asarray,
    "value_float": lambda value: np.asarray(value, np.float32),
    "value_floats": lambda value: np.asarray(value, np.float32),
    "value_int": lambda value: np.asarray(value, np.int64),
    "value_ints": lambda value: np.asarray(value, np.int64),
}
