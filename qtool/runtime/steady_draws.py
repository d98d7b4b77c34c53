"""Makes nodes that draw random numbers deterministic, in every run and every variant of a model.

Speech synthesis and diffusion draw noise inside the graph, which comparisons would measure instead of the error. Even
with a seed, onnxruntime continues its sequence from run to run. Here each number depends only on its index in the
tensor, so that models under comparison draw the same ones.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from qtool.formats.onnx.onnx_outline import read_outline
from qtool.graph.names import Names

# The distributions with a closed form; others only get a seed.
_FROM_A_SHAPE = ("RandomNormal", "RandomUniform")
_LIKE_A_TENSOR = ("RandomNormalLike", "RandomUniformLike", "Bernoulli")
_SEEDED = ("Multinomial",)
DRAWING = frozenset((*_FROM_A_SHAPE, *_LIKE_A_TENSOR, *_SEEDED))
# The note on comparisons.
DRAWN_ALIKE = "the model draws random numbers: both sides draw the same ones to be compared"
# NonZero counts places from this version on.
_OLDEST_OPSET = 9
# Reshape takes lengths of 0 from this version on.
_ZERO_LENGTHS_OPSET = 14
# A prime below 2^31: products of two remainders fit into int64.
_PRIME = 2147483647
# The number of nodes with independent draws.
_STREAMS = 1 << 20
_FACTOR, _SHIFT, _STRIDE = 1103515245, 12345, 69069


def draws(model: ir.Model) -> bool:
    """Returns whether a model has a node that draws random numbers."""
    return any(node.op_type in DRAWING for node in _nodes(model.graph))


def file_draws(path: Path) -> bool:
    """Returns the same of the model in ``path``, without reading its weights."""
    return outline_draws(read_outline(path))


def outline_draws(outline: onnx.ModelProto) -> bool:
    """Returns the same of a model that was read without its weights."""
    return _proto_draws(outline.graph.node)


def with_steady_draws(model: ir.Model) -> ir.Model:
    """Returns a copy of ``model`` with deterministic draws; ``model`` itself where it draws nothing.

    Nodes are distinguished by their output names, which variants and parts of a model have in common.
    """
    if not draws(model):
        return model
    opset = model.opset_imports.get("", 0)
    changed = model.clone()
    names = Names(changed.graph)
    drawing = [node for node in _nodes(changed.graph) if node.op_type in DRAWING]
    for node in drawing:
        number = zlib.crc32((node.outputs[0].name or "").encode()) % _STREAMS
        if opset < _OLDEST_OPSET or node.op_type in _SEEDED:
            node.attributes["seed"] = ir.AttrFloat32("seed", float(number))
        else:
            _Drawn(node, names, number, opset).replace()
    return changed


def _nodes(graph: ir.Graph) -> Iterable[ir.Node]:
    return (node for node in ir.traversal.RecursiveGraphIterator(graph) if node.domain == "")


def _proto_draws(nodes: Iterable[onnx.NodeProto]) -> bool:
    return any(
        (node.domain == "" and node.op_type in DRAWING)
        or any(_proto_draws(attribute.g.node) for attribute in node.attribute)
        for node in nodes
    )


class _Drawn:
    """Builds the nodes that replace one node."""

    def __init__(self, node: ir.Node, names: Names, number: int, opset: int) -> None:
        self._node = node
        self._names = names
        self._number = number
        self._opset = opset
        self._nodes: list[ir.Node] = []

    def replace(self) -> None:
        """Replaces the node by the new ones."""
        node, output = self._node, self._node.outputs[0]
        shape = self._shape()
        if node.op_type == "Bernoulli":
            chance = self._op("Cast", node.inputs[0], to=ir.DataType.FLOAT)
            drawn = self._op("Less", self._shaped(self._uniform(shape, 0), shape), chance)
        elif node.op_type.startswith("RandomNormal"):
            drawn = self._affine(self._normal(shape), self._float("scale", 1.0), self._float("mean", 0.0))
        else:
            low, high = self._float("low", 0.0), self._float("high", 1.0)
            drawn = self._affine(self._uniform(shape, 0), high - low, low)
        last = self._cast(drawn if node.op_type == "Bernoulli" else self._shaped(drawn, shape))
        graph = node.graph
        if graph is None:
            raise AssertionError("a node that is looked at is in a graph")
        last.type, last.shape = output.type, output.shape
        output.name, last.name = self._names.free(f"{output.name}_replaced"), output.name
        graph.insert_before(node, self._nodes)
        ir.convenience.replace_all_uses_with(output, last, replace_graph_outputs=True)
        graph.remove(node, safe=True)

    def _shape(self) -> ir.Value:
        if self._node.op_type in _LIKE_A_TENSOR:
            return self._op("Shape", self._node.inputs[0])
        return self._constant(np.asarray(self._node.attributes["shape"].as_ints(), np.int64))

    def _shaped(self, flat: ir.Value, shape: ir.Value) -> ir.Value:
        # Otherwise a 0 stands for the length that was there before.
        empty = {"allowzero": 1} if self._opset >= _ZERO_LENGTHS_OPSET else {}
        return self._op("Reshape", flat, shape, **empty)

    def _cast(self, drawn: ir.Value) -> ir.Value:
        """Casts to the type that the node declares, or else that of its input, or else float32."""
        wanted = self._node.attributes.get("dtype")
        if wanted is not None:
            return self._op("Cast", drawn, to=wanted.as_int())
        if self._node.op_type in _LIKE_A_TENSOR:
            known = self._node.outputs[0].dtype or (self._node.inputs[0].dtype if self._node.inputs[0] else None)
            return self._op("Cast", drawn, to=ir.DataType.FLOAT if known is None else known)
        return self._op("Cast", drawn, to=ir.DataType.FLOAT)

    def _normal(self, shape: ir.Value) -> ir.Value:
        """Draws from the normal distribution, after Box and Muller (1958)."""
        radius = self._op("Log", self._uniform(shape, 0))
        radius = self._op("Sqrt", self._op("Mul", radius, self._constant(np.float32(-2.0))))
        angle = self._op("Mul", self._uniform(shape, 1), self._constant(np.float32(2.0 * math.pi)))
        return self._op("Mul", radius, self._op("Cos", angle))

    def _uniform(self, shape: ir.Value, stream: int) -> ir.Value:
        """Draws float32 numbers between 0 and 1, both excluded, one per index: (places,).

        The index goes twice through x -> (a x + b)^2 modulo a prime.
        """
        ones = self._op("ConstantOfShape", shape, value=ir.tensor(np.ones(1, np.int64)))
        places = self._op("NonZero", self._op("Reshape", ones, self._flat()))
        value = self._op("Reshape", places, self._flat())
        shift = (_SHIFT + _STRIDE * (2 * self._number + stream)) % _PRIME
        for _ in range(2):
            value = self._remainder(self._op("Add", self._op("Mul", value, self._int(_FACTOR)), self._int(shift)))
            value = self._remainder(self._op("Mul", value, value))
        # The largest remainders would round to 1 in float32.
        share = self._op("Cast", self._op("Div", value, self._int(256)), to=ir.DataType.FLOAT)
        share = self._op("Add", share, self._constant(np.float32(0.5)))
        return self._op("Mul", share, self._constant(np.float32(256.0 / (_PRIME + 1))))

    def _remainder(self, value: ir.Value) -> ir.Value:
        whole = self._op("Mul", self._op("Div", value, self._int(_PRIME)), self._int(_PRIME))
        return self._op("Sub", value, whole)

    def _affine(self, value: ir.Value, factor: float, offset: float) -> ir.Value:
        scaled = self._op("Mul", value, self._constant(np.float32(factor)))
        return self._op("Add", scaled, self._constant(np.float32(offset)))

    def _float(self, name: str, default: float) -> float:
        attribute = self._node.attributes.get(name)
        return default if attribute is None else attribute.as_float()

    def _flat(self) -> ir.Value:
        return self._constant(np.asarray([-1], np.int64))

    def _int(self, value: int) -> ir.Value:
        return self._constant(np.asarray(value, np.int64))

    def _constant(self, array: Any) -> ir.Value:
        return self._op("Constant", value=ir.tensor(np.asarray(array)))

    def _op(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        node = ir.node(operator, list(inputs), attributes)
        node.name = self._names.free(f"{self._node.name or self._node.outputs[0].name}_{operator}_drawn")
        node.outputs[0].name = self._names.free(f"{self._node.outputs[0].name}_{operator}")
        self._nodes.append(node)
        return node.outputs[0]
