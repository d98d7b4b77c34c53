"""Changes the layout of a graph's image inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.calib.image_layout import Layout
from qtool.calib.specs import Array, Feed
from qtool.formats.onnx.shape_inference import infer_shapes
from qtool.graph.names import Names
from qtool.image_layout import image_layout
from qtool.passes.layout.permutations import Perm, identity, inverse, then
from qtool.passes.layout.rewrites import BROADCASTING, VALUE_BY_VALUE
from qtool.passes.layout.to_nchw import ToNchw
from qtool.passes.layout.to_nhwc import LAYERS, TO_FIRST, TO_LAST
from qtool.passes.layout.transposes import transpose_perm

_TURNS: Mapping[Layout, Perm] = {"nhwc": TO_LAST, "nchw": TO_FIRST}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """The inputs and outputs whose layout changed.

    Attributes:
        layout: the new layout.
        inputs: names of inputs.
        outputs: names of outputs.
    """

    layout: Layout
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def feed(self, feed: Feed) -> dict[str, Array]:
        """Converts inputs of the original graph to the new layout."""
        turn = _TURNS[self.layout]
        return {name: _turned(array, turn) if name in self.inputs else array for name, array in feed.items()}

    def returned(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Converts outputs of the new graph to the original layout."""
        turn = inverse(_TURNS[self.layout])
        return {name: _turned(array, turn) if name in self.outputs else array for name, array in outputs.items()}


def turn_borders(model: ir.Model, layout: Layout) -> Turned:
    """Changes every image input and output that certainly has the other layout to that layout.

    The added Transpose nodes cancel with existing ones where possible.
    """
    infer_shapes(model)
    graph, turn = model.graph, _TURNS[layout]
    names = Names(graph)
    inputs = [
        value for value in graph.inputs if not value.is_initializer() and image_layout(value) not in (layout, None)
    ]
    outputs = [value for value in graph.outputs if _made_layout(value) not in (layout, None)]
    turned = Turned(
        layout=layout,
        inputs=tuple(value.name or "" for value in inputs),
        outputs=tuple(value.name or "" for value in outputs),
    )
    for value in inputs:
        _turn_input(graph, names, value, turn)
    for value in outputs:
        _turn_output(graph, names, value, turn)
    ToNchw()(model)
    return turned


def _made_layout(value: ir.Value) -> Layout | None:
    """Goes back to the layer that produces a value of four axes, and returns its permutation since."""
    turned = identity(len(TO_LAST))
    producer = value.producer()
    while producer is not None and value.shape is not None and len(value.shape) == len(TO_LAST):
        if producer.op_type in LAYERS:
            found: dict[Perm, Layout] = {identity(len(TO_LAST)): "nchw", TO_LAST: "nhwc"}
            return found.get(turned)
        perm = transpose_perm(producer)
        if perm is not None:
            turned = then(perm, turned)
        elif producer.op_type not in (*BROADCASTING, *VALUE_BY_VALUE):
            return None
        computed = (one for one in producer.inputs if one is not None and one.producer() is not None)
        source = next((one for one in computed if one.shape is not None and len(one.shape) == len(TO_LAST)), None)
        producer = None if source is None else source.producer()
    return None


def _turn_input(graph: ir.Graph, names: Names, value: ir.Value, turn: Perm) -> None:
    readers = list(value.uses())
    node = ir.node(
        "Transpose", [value], attributes={"perm": inverse(turn)}, name=names.for_both(f"{value.name}_turned")
    )
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = node.name, value.type, value.shape
    if value.shape is not None:
        value.shape = ir.Shape([value.shape[axis] for axis in turn])
    for use in readers:
        use.node.replace_input_with(use.idx, node.outputs[0])
    first = next(iter(graph), None)
    if first is None:
        graph.append(node)
    else:
        graph.insert_before(first, node)


def _turn_output(graph: ir.Graph, names: Names, value: ir.Value, turn: Perm) -> None:
    name = value.name or ""
    value.name = names.free(f"{name}_unturned")
    node = ir.node("Transpose", [value], attributes={"perm": turn}, name=names.for_both(f"{name}_turn"))
    node.outputs[0].name, node.outputs[0].type = name, value.type
    if value.shape is not None:
        node.outputs[0].shape = ir.Shape([value.shape[axis] for axis in turn])
    graph.append(node)
    graph.outputs[list(graph.outputs).index(value)] = node.outputs[0]


def _turned(array: Array, turn: Perm) -> Array:
    return np.ascontiguousarray(np.transpose(array, turn))
