"""Latency model of mixed precision: estimates what keeping layers float costs or saves in time.

The time of a layer in both forms is measured, or follows from its multiply-adds and a profile of the machine. Where
float and integer layers meet, every element has to be converted, and its layout changed: integer convolutions need
channels last, float ones blocks of channels. The sum over layers and tensors is a cost that a minimum cut minimizes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import networkx as nx
import onnx_ir as ir

from qtool.analysis.fed_sizes import fed_sizes
from qtool.backends.machine_profile import MachineProfile
from qtool.backends.qdq_placement.operators import OPERATORS, Kind
from qtool.calib.specs import Feed
from qtool.graph.constants import is_constant
from qtool.graph.tensor_sizes import TensorSize
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Watcher
from qtool.search.blocked_layout import blocked_nodes
from qtool.search.layer_times import LayerTime, Shapes, multiply_adds, predicted_times, unsigned_nanoseconds
from qtool.search.node_groups import NodeGroup

_IMAGE_AXES = 4
# Whose integer forms read and write channels last (NHWC), after an integer Conv.
_CHANNELS_LAST = frozenset(
    {"Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Add", "Sum", "Mul", "Concat", "Relu"}
    | {"Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "BatchNormalization", "Resize"}
)
NOT_KNOWN: Mapping[str, float] = MappingProxyType({})
_INTEGERS, _FLOATS = "integers", "floats"


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """An activation between layers, and its conversion costs; None stands for nodes that are float in any case.

    Attributes:
        producer: the layer that it comes from.
        readers: the layers that it goes to.
        to_integers: nanoseconds to quantize it for an integer reader.
        to_floats: nanoseconds to dequantize it for a float reader.
        among_floats: nanoseconds to change its layout between float operators.
    """

    producer: str | None
    readers: frozenset[str | None]
    to_integers: float
    to_floats: float
    among_floats: float = 0.0


class FloatCost:
    """The latency of the layers of one model, in float and on integers.

    Attributes:
        base: layers that are float in any case.
    """

    def __init__(
        self,
        times: Mapping[str, LayerTime],
        borders: Sequence[Border],
        *,
        base: Collection[str] = frozenset(),
        unsigned: Mapping[str, float] = NOT_KNOWN,
        products: Mapping[str, float] = NOT_KNOWN,
    ) -> None:
        """Takes what is known of all layers.

        Args:
            times: how long they take.
            borders: the activations between them.
            base: layers that are float in any case.
            unsigned: how much longer they take with u8 weights, in nanoseconds.
            products: their shares of the model's multiply-adds, 0 to 1.
        """
        self._times = times
        self._unsigned = unsigned
        self._products = products
        self._borders = borders
        self.base = frozenset(base)
        self._usual = self._nanoseconds(self.base)
        # What integers save in total, over the layers for which they save time.
        self._total = max(self._nanoseconds(frozenset(times)) - self._usual, 1.0)

    def beside(self, base: Collection[str]) -> FloatCost:
        """Returns the costs beside a model in which the layers of ``base`` are float."""
        return FloatCost(self._times, self._borders, base=base, unsigned=self._unsigned, products=self._products)

    def trusted(self, factor: float) -> FloatCost:
        """Returns the same with savings ``factor`` times as large, and losses as much smaller."""
        times = {}
        for layer, time in self._times.items():
            saved = time.saved * factor if time.saved > 0.0 else time.saved / factor
            times[layer] = replace(time, floats=time.integers + saved)
        return FloatCost(times, self._borders, base=self.base, unsigned=self._unsigned, products=self._products)

    def nanoseconds(self, layers: Collection[str]) -> float:
        """Returns how much longer a run takes with ``layers`` in float as well; below 0 where it is shorter."""
        return self._nanoseconds(self.base | set(layers)) - self._usual

    def share(self, layers: Collection[str]) -> float:
        """Returns the fraction of the integers' savings lost with ``layers`` in float; below 0 where it is faster."""
        return self.nanoseconds(layers) / self._total

    def products(self, layers: Collection[str]) -> float:
        """Returns the share of the model's multiply-adds in ``layers``, 0 to 1."""
        return sum(self._products.get(layer, 0.0) for layer in layers)

    def slowdown_of_unsigned(self, layers: Collection[str]) -> float:
        """Returns the relative slowdown of a run when the weights of ``layers`` are u8."""
        return sum(max(self._unsigned[layer], 0.0) for layer in layers) / max(self._usual, 1.0)

    def share_of_slowdown(self, part: float) -> float:
        """Returns the fraction of the integers' savings lost when a run becomes slower by ``part`` of itself."""
        return part * max(self._usual, 1.0) / self._total

    def cheapest(self) -> frozenset[str]:
        """Returns the layers to keep float for the shortest run, all borders considered."""
        if not any(time.saved > 0.0 for time in self._times.values()) and not any(
            border.among_floats > 0.0 for border in self._borders
        ):
            # Nothing speaks for integers: a graph of very many nodes needs no cut to tell.
            return frozenset(self._times)
        graph = nx.DiGraph()
        graph.add_nodes_from((_INTEGERS, _FLOATS))

        def pays(start: object, end: object, cost: float) -> None:
            """Adds an edge that costs ``cost`` where ``start`` is on integers and ``end`` is in float."""
            if cost > 0.0 and start != end:
                known = graph.get_edge_data(start, end, {"capacity": 0.0})
                graph.add_edge(start, end, capacity=known["capacity"] + cost)

        for layer, time in self._times.items():
            place = ("layer", layer)
            pays(_INTEGERS, place, time.saved)
            pays(place, _FLOATS, -time.saved)
        for number, border in enumerate(self._borders):
            producer = _place(border.producer)
            readers = [_place(reader) for reader in border.readers]
            # Costs among floats apply where the producer is float, and are subtracted from its other borders.
            pays(_INTEGERS, producer, border.among_floats)
            some_integers, some_floats = ("read by integers", number), ("read by floats", number)
            pays(some_integers, producer, max(border.to_integers - border.among_floats, 0.0))
            pays(producer, some_floats, border.to_floats)
            for reader in readers:
                # An edge without a capacity is unlimited: a reader takes the node that stands for all of them with it.
                graph.add_edge(reader, some_integers)
                graph.add_edge(some_floats, reader)
        for layer in self.base:
            graph.add_edge(("layer", layer), _FLOATS)
        _, (_, floats) = nx.minimum_cut(graph, _INTEGERS, _FLOATS)
        return frozenset(layer for layer in self._times if ("layer", layer) in floats)

    def _nanoseconds(self, kept: frozenset[str]) -> float:
        """Returns the time of layers and borders with the layers of ``kept`` in float."""
        floats = kept | {None}
        layers = sum(time.floats if layer in kept else time.integers for layer, time in self._times.items())
        return layers + sum(_cost(border, floats) for border in self._borders)


def _cost(border: Border, floats: Collection[str | None]) -> float:
    read_by_integers = any(reader not in floats for reader in border.readers)
    if border.producer not in floats:
        return border.to_floats if any(reader in floats for reader in border.readers) else 0.0
    return max(border.to_integers, border.among_floats) if read_by_integers else border.among_floats


def _place(layer: str | None) -> object:
    return _FLOATS if layer is None else ("layer", layer)


def float_cost(
    model: ir.Model,
    groups: Sequence[NodeGroup],
    feed: Feed,
    profile: MachineProfile,
    *,
    measured: Mapping[str, LayerTime] | None = None,
    sizes: Mapping[str, TensorSize] | None = None,
    threads: int = 0,
) -> FloatCost:
    """Returns the costs for the layers of ``groups``.

    Args:
        model: the prepared float model, which is not modified.
        groups: its layers, each with its nodes.
        feed: a sample, for the sizes of tensors.
        profile: what kernels cost on the machine.
        measured: measured times by layer; None to predict them from ``profile``.
        sizes: what ``fed_sizes`` returns, where that is known.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    owners = _owners(model, groups)
    involved = [node for node in model.graph if node.name in owners]
    values = {value.name or "": value for node in involved for value in (*node.inputs, *node.outputs) if value}
    watched = {name: value for name, value in values.items() if name and not is_constant(value)}
    sizes = fed_sizes(model, feed) if sizes is None else sizes
    shapes = {name: sizes[name].shape for name in watched if name in sizes}
    unknown = tuple(name for name in watched if name not in shapes)
    if unknown:
        with watching(model, unknown) as graph, open_graph(graph, threads=threads) as session:
            shapes |= {name: value.shape for name, value in Watcher(session).run(feed).items()}
    times = predicted_times(model, groups, shapes, profile) if measured is None else measured
    blocked = blocked_nodes(model, shapes)
    borders = [_border(value, shapes.get(name, ()), owners, blocked, profile) for name, value in watched.items()]
    known = {group.layer: times[group.layer] for group in groups}
    return FloatCost(
        known,
        borders,
        unsigned=unsigned_nanoseconds(model, groups, shapes, profile),
        products=_product_shares(model, groups, {name: value.shape for name, value in sizes.items()} | shapes),
    )


def _product_shares(model: ir.Model, groups: Sequence[NodeGroup], shapes: Shapes) -> dict[str, float]:
    """Returns by layer its share of the multiply-adds of all layers, the ones that are float in any case included."""
    products = {
        node.name or "": multiply_adds(node, shapes)
        for node in model.graph
        if node.domain == "" and node.op_type in OPERATORS and OPERATORS[node.op_type].kind is Kind.LAYER
    }
    total = max(sum(products.values()), 1)
    return {group.layer: products[group.layer] / total for group in groups}


def _border(
    value: ir.Value,
    shape: tuple[int, ...],
    owners: Mapping[str, str],
    blocked: Collection[str],
    profile: MachineProfile,
) -> Border:
    producer, readers = value.producer(), [use.node for use in value.uses()]
    read_by: set[str | None] = {owners.get(reader.name or "") for reader in readers}
    if value.is_graph_output():
        read_by.add(None)
    image = len(shape) == _IMAGE_AXES
    elements = _size(shape)
    integer_conv = [reader.op_type == "Conv" for reader in readers]
    turned_in = profile.transpose if image and any(integer_conv) else 0.0
    from_blocks = producer is not None and producer.name in blocked
    turned_out = profile.transpose if image and producer is not None and producer.op_type in _CHANNELS_LAST else 0.0
    into_blocks = [reader.name in blocked for reader in readers]
    if value.is_graph_output():
        into_blocks.append(False)
    differs = image and bool(into_blocks) and not (all(into_blocks) if from_blocks else not any(into_blocks))
    return Border(
        producer=None if producer is None else owners.get(producer.name or ""),
        readers=frozenset(read_by),
        to_integers=profile.node
        + elements * (profile.quantize + turned_in + (profile.reorder if image and from_blocks else 0.0)),
        to_floats=profile.node
        + elements * (profile.dequantize + turned_out + (profile.reorder if any(into_blocks) else 0.0)),
        among_floats=profile.node + elements * profile.reorder if differs else 0.0,
    )


def _owners(model: ir.Model, groups: Sequence[NodeGroup]) -> dict[str, str]:
    """Returns by node name the layer that it belongs to; a clamp belongs to the layer it is fused into."""
    owners = {name: group.layer for group in groups for name in group.nodes}
    for node in model.graph:
        operator = OPERATORS.get(node.op_type) if node.domain == "" else None
        producer = node.inputs[0].producer() if operator is not None and node.inputs and node.inputs[0] else None
        if operator is not None and operator.kind is Kind.CLAMPING and producer is not None and producer.name in owners:
            owners.setdefault(node.name or "", owners[producer.name])
    return owners


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size
