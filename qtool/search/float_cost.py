"""Estimates what keeping layers float costs, from the graph and the sizes of its tensors alone.

Measured times would differ from run to run, and with them the model that is written. What integers save is about
proportional to the multiply-adds of a layer, and to its weights, which are a quarter as large to read for each sample.
Where float and integer layers meet, every element has to be converted, and its layout changed. From onnxruntime's
profile of EfficientNet-Lite0 on a CPU with VNNI: 0.02 ns saved for a multiply-add and 0.2 ns for a weight, 0.4 ns spent
on an element.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from calib.specs import Feed
from qtool.passes.constants import constant_array, integer_attribute, is_constant
from qtool.placement.operators import OPERATORS, Kind
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Watcher
from qtool.search.node_groups import NodeGroup

_PRODUCTS_AN_ELEMENT = 20
_PRODUCTS_A_WEIGHT = 10


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An activation between layers: where it comes from and goes to; None stands for what is float anyway."""

    elements: int
    maker: str | None
    readers: frozenset[str | None]


class FloatCost:
    """Knows the layers of one model."""

    def __init__(self, products: Mapping[str, int], tensors: Sequence[_Tensor]) -> None:
        """Takes what every layer saves, in multiply-adds, and the tensors between them."""
        self._products = products
        self._tensors = tensors
        self._total = max(sum(products.values()), 1)
        self._usual = self._conversions(frozenset())

    def share(self, layers: Collection[str]) -> float:
        """Returns which part of what integers save is given up with ``layers`` in float; below 0 where it is faster."""
        kept = frozenset(layers)
        products = sum(self._products[layer] for layer in kept)
        conversions = self._conversions(kept) - self._usual
        return (products + _PRODUCTS_AN_ELEMENT * conversions) / self._total

    def _conversions(self, kept: frozenset[str]) -> int:
        """Returns how many elements pass between float and integers."""
        floats = kept | {None}
        return sum(
            tensor.elements
            for tensor in self._tensors
            if any((reader in floats) != (tensor.maker in floats) for reader in tensor.readers)
        )


def float_cost(model: ir.Model, groups: Sequence[NodeGroup], feed: Feed, *, threads: int = 0) -> FloatCost:
    """Returns the costs for the layers of ``groups``.

    Args:
        model: the prepared float model, which is left as it is.
        groups: its layers, with what belongs to each.
        feed: one batch, for the sizes of tensors.
        threads: threads inside an operator; 0 is one a core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    owners = _owners(model, groups)
    involved = [node for node in model.graph if node.name in owners]
    values = {value.name or "": value for node in involved for value in (*node.inputs, *node.outputs) if value}
    watched = {name: value for name, value in values.items() if name and not is_constant(value)}
    with watching(model, tuple(watched)) as graph, open_graph(graph, threads=threads) as session:
        shapes = {name: value.shape for name, value in Watcher(session).run(feed).items()}
    nodes = {node.name: node for node in involved}
    samples = max(next((value.shape[0] for value in feed.values() if value.ndim), 1), 1)
    products = {
        group.layer: _products(nodes[group.layer], shapes) + _PRODUCTS_A_WEIGHT * samples * _weights(nodes[group.layer])
        for group in groups
    }
    tensors = []
    for name, value in watched.items():
        maker = value.producer()
        readers: set[str | None] = {owners.get(use.node.name or "") for use in value.uses()}
        if value.is_graph_output():
            readers.add(None)
        made_by = None if maker is None else owners.get(maker.name or "")
        tensors.append(_Tensor(_size(shapes.get(name, ())), made_by, frozenset(readers)))
    return FloatCost(products, tensors)


def _owners(model: ir.Model, groups: Sequence[NodeGroup]) -> dict[str, str]:
    """Returns by node name the layer that it belongs to; a clamp is absorbed by what it limits."""
    owners = {name: group.layer for group in groups for name in group.nodes}
    for node in model.graph:
        operator = OPERATORS.get(node.op_type) if node.domain == "" else None
        maker = node.inputs[0].producer() if operator is not None and node.inputs and node.inputs[0] else None
        if operator is not None and operator.kind is Kind.CLAMPING and maker is not None and maker.name in owners:
            owners.setdefault(node.name or "", owners[maker.name])
    return owners


def _products(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns a layer's multiply-adds."""
    source, result = node.inputs[0], node.outputs[0]
    given = shapes.get((source.name or "") if source else "", ())
    made = _size(shapes.get(result.name or "", ()))
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type == "Conv":
        kernel = [dim for dim in (weight.shape or ()) if isinstance(dim, int)] if weight is not None else []
        return made * _size(tuple(kernel[1:]))
    if not given:
        return made
    inner = given[0] if node.op_type == "Gemm" and integer_attribute(node, "transA", 0) else given[-1]
    return made * inner


def _weights(node: ir.Node) -> int:
    """Returns how many stored weights a layer reads."""
    stored = [constant_array(value) for value in node.inputs[1:2]]
    return sum(array.size for array in stored if array is not None)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size
