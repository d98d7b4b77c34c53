"""Estimates what keeping layers float costs, or saves, in time.

What a layer takes in both forms is measured, or follows from its multiply-adds and a profile of the machine. Where
float and integer layers meet, every element has to be converted, and its layout changed: integer convolutions want
channels last, float ones blocks of channels. The sum over layers and tensors is a cost that a minimum cut minimizes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import networkx as nx
import onnx_ir as ir

from qtool.analysis.fed_sizes import fed_sizes
from qtool.backends.onnxruntime_cpu.machine_profile import MachineProfile
from qtool.backends.qdq_placement.operators import OPERATORS, Kind
from qtool.calib.specs import Feed
from qtool.graph.constants import is_constant
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Watcher
from qtool.search.layer_times import LayerTime, predicted_times, unsigned_nanoseconds
from qtool.search.node_groups import NodeGroup

# Float operators that onnxruntime runs on blocks of channels, next to a Conv
# (https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/optimizer/nchwc_transformer.cc).
_BLOCKED = frozenset(
    {"Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Add", "Sum", "Mul", "Concat", "Relu"}
    | {"Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "BatchNormalization", "Resize"}
)
_IMAGE_AXES = 4
NOT_KNOWN: Mapping[str, float] = MappingProxyType({})
_INTEGERS, _FLOATS = "integers", "floats"


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """An activation between layers, and what it costs where they differ; None stands for what is float anyway.

    Attributes:
        producer: the layer that it comes from.
        readers: the layers that it goes to.
        to_integers: nanoseconds for a float to be read as integers.
        to_floats: nanoseconds for integers to be read as floats.
        among_floats: nanoseconds that it takes between floats in different layouts.
    """

    producer: str | None
    readers: frozenset[str | None]
    to_integers: float
    to_floats: float
    among_floats: float = 0.0


class FloatCost:
    """Knows the layers of one model.

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
    ) -> None:
        """Takes what every layer takes, the borders, and how much longer layers with u8 weights take."""
        self._times = times
        self._unsigned = unsigned
        self._borders = borders
        self.base = frozenset(base)
        self._usual = self._nanoseconds(self.base)
        # What all of the integers save, as they are used; layers that do not pay are none of them.
        self._total = max(self._nanoseconds(frozenset(times)) - self._usual, 1.0)

    def beside(self, base: Collection[str]) -> FloatCost:
        """Returns the costs beside a model in which the layers of ``base`` are float."""
        return FloatCost(self._times, self._borders, base=base, unsigned=self._unsigned)

    def trusted(self, factor: float) -> FloatCost:
        """Returns the same with savings ``factor`` times as large, and losses as much smaller."""
        times = {}
        for layer, time in self._times.items():
            saved = time.saved * factor if time.saved > 0.0 else time.saved / factor
            times[layer] = replace(time, floats=time.integers + saved)
        return FloatCost(times, self._borders, base=self.base, unsigned=self._unsigned)

    def nanoseconds(self, layers: Collection[str]) -> float:
        """Returns how much longer a run takes with ``layers`` in float as well; below 0 where it is shorter."""
        return self._nanoseconds(self.base | set(layers)) - self._usual

    def share(self, layers: Collection[str]) -> float:
        """Returns which part of what integers save is given up with ``layers`` in float; below 0 where it is faster."""
        return self.nanoseconds(layers) / self._total

    def slowdown_of_unsigned(self, layers: Collection[str]) -> float:
        """Returns by which part of itself a run becomes longer when the weights of ``layers`` are u8."""
        return sum(max(self._unsigned[layer], 0.0) for layer in layers) / max(self._usual, 1.0)

    def share_of_slowdown(self, part: float) -> float:
        """Returns which part of what integers save is given up when a run takes longer by ``part`` of itself."""
        return part * max(self._usual, 1.0) / self._total

    def cheapest(self) -> frozenset[str]:
        """Returns the layers that are faster in float, all taken together: the choice with the shortest run."""
        graph = nx.DiGraph()
        graph.add_nodes_from((_INTEGERS, _FLOATS))

        def pays(start: object, end: object, cost: float) -> None:
            """Lets ``cost`` be due where ``start`` is on integers and ``end`` is in float."""
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
            # Among floats costs are due where the producer is float, and as much less at its other borders.
            pays(_INTEGERS, producer, border.among_floats)
            some_integers, some_floats = ("read by integers", number), ("read by floats", number)
            pays(some_integers, producer, max(border.to_integers - border.among_floats, 0.0))
            pays(producer, some_floats, border.to_floats)
            for reader in readers:
                # No capacity is no limit: a reader takes the node that stands for all of them with it.
                graph.add_edge(reader, some_integers)
                graph.add_edge(some_floats, reader)
        for layer in self.base:
            graph.add_edge(("layer", layer), _FLOATS)
        _, (_, floats) = nx.minimum_cut(graph, _INTEGERS, _FLOATS)
        return frozenset(layer for layer in self._times if ("layer", layer) in floats)

    def _nanoseconds(self, kept: frozenset[str]) -> float:
        """Returns what a run takes with the layers of ``kept`` in float, as far as layers and borders go."""
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
    threads: int = 0,
) -> FloatCost:
    """Returns the costs for the layers of ``groups``.

    Args:
        model: the prepared float model, which is left as it is.
        groups: its layers, with what belongs to each.
        feed: a sample, for the sizes of tensors.
        profile: what kernels cost on the machine.
        measured: by layer, what it was found to take; None to follow from ``profile``.
        threads: threads inside an operator; 0 is one a core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    owners = _owners(model, groups)
    involved = [node for node in model.graph if node.name in owners]
    values = {value.name or "": value for node in involved for value in (*node.inputs, *node.outputs) if value}
    watched = {name: value for name, value in values.items() if name and not is_constant(value)}
    sizes = fed_sizes(model, feed)
    shapes = {name: sizes[name].shape for name in watched if name in sizes}
    unknown = tuple(name for name in watched if name not in shapes)
    if unknown:
        with watching(model, unknown) as graph, open_graph(graph, threads=threads) as session:
            shapes |= {name: value.shape for name, value in Watcher(session).run(feed).items()}
    times = predicted_times(model, groups, shapes, profile) if measured is None else measured
    borders = [_border(value, shapes.get(name, ()), owners, profile) for name, value in watched.items()]
    known = {group.layer: times[group.layer] for group in groups}
    return FloatCost(known, borders, unsigned=unsigned_nanoseconds(model, groups, shapes, profile))


def _border(value: ir.Value, shape: tuple[int, ...], owners: Mapping[str, str], profile: MachineProfile) -> Border:
    producer, readers = value.producer(), [use.node for use in value.uses()]
    read_by: set[str | None] = {owners.get(reader.name or "") for reader in readers}
    if value.is_graph_output():
        read_by.add(None)
    image = len(shape) == _IMAGE_AXES
    elements = _size(shape)
    # Integer convolutions read and write channels last.
    integer_conv = [reader.op_type == "Conv" for reader in readers]
    turned_in = profile.transpose if image and any(integer_conv) else 0.0
    turned_out = profile.transpose if image and producer is not None and producer.op_type in _BLOCKED else 0.0
    from_blocks = image and producer is not None and producer.op_type in _BLOCKED
    into_blocks = image and any(reader.op_type in _BLOCKED for reader in readers)
    differs = from_blocks != (image and all(reader.op_type in _BLOCKED for reader in readers) and bool(readers))
    return Border(
        producer=None if producer is None else owners.get(producer.name or ""),
        readers=frozenset(read_by),
        to_integers=profile.node
        + elements * (profile.quantize + turned_in + (profile.reorder if from_blocks else 0.0)),
        to_floats=profile.node
        + elements * (profile.dequantize + turned_out + (profile.reorder if into_blocks else 0.0)),
        among_floats=profile.node + elements * profile.reorder if differs else 0.0,
    )


def _owners(model: ir.Model, groups: Sequence[NodeGroup]) -> dict[str, str]:
    """Returns by node name the layer that it belongs to; a clamp is absorbed by what it limits."""
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
