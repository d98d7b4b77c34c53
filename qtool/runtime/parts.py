"""Runs graphs whose weights do not fit into memory, in parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Array, TensorSpec
from qtool.formats.onnx.onnx_file import weights_nbytes
from qtool.graph.constants import integer_attribute
from qtool.graph.node_reads import read_by
from qtool.graph.unpacked_product import INTEGER_LEVEL
from qtool.runtime.divided_graph import Part, divided, part_of
from qtool.runtime.session import Session
from qtool.runtime.shared_initializers import may_be_handed_over, place_holder, read_in_place, ready
from qtool.runtime.steady_draws import with_steady_draws

# Weights of models that run as a whole.
_LARGEST_WHOLE_BYTES = 1 << 30
# Weights that one part uses; a larger tensor is a part of its own.
_LARGEST_PART_BYTES = 384 << 20
# Smaller ones are stored in the message.
_SMALLEST_HANDED_OVER_BYTES = 1 << 16
# Those of the others that products read are inputs of their part.
_FED = frozenset({ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8})
_FLOAT_BYTES = 4
_CONVERTED = frozenset(ir.DataType[name] for name in ("FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT4", "UINT4"))


def needs_parts(model: ir.Model) -> bool:
    """Returns whether the weights of a graph are too large to be held in memory as a whole."""
    return weights_nbytes(model) > _LARGEST_WHOLE_BYTES


def parts_of(model: ir.Model) -> Parts:
    """Returns the parts of a graph, whose nodes that draw random numbers draw the same ones in every run."""
    return Parts(with_steady_draws(model))


class Parts:
    """Runs one graph as ``Session`` does, with the weights of one part in memory at a time.

    Weights in external files are mapped while their part runs. onnxruntime does not rewrite the graph.

    Attributes:
        inputs: the graph's inputs.
        outputs: what it returns.
    """

    def __init__(self, model: ir.Model, *, largest_part_bytes: int = _LARGEST_PART_BYTES) -> None:
        """Divides ``model``, which is not modified and may change afterwards.

        Args:
            model: the graph.
            largest_part_bytes: the weights that one part uses, unless a single tensor is larger.
        """
        self._model = model.clone()
        self._weights = {
            value: value.const_value
            for value in self._model.graph.initializers.values()
            if value.const_value is not None and not value.is_graph_input()
        }
        graph = self._model.graph
        self.inputs = tuple(_spec(value) for value in graph.inputs if value.name not in graph.initializers)
        self.outputs = tuple(_spec(value) for value in graph.outputs)
        self._parts = divided(self._model, list(_groups(self._model, largest_part_bytes)))

    def run(self, feeds: Mapping[str, Array], outputs: Iterable[str] | None = None) -> dict[str, Array]:
        """Returns the named outputs (default: all) for one batch of inputs.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run a part.
        """
        values = dict(feeds)
        for part in self._parts:
            values |= self._run_part(part, values)
            for name in part.spent:
                values.pop(name, None)
        names = [spec.name for spec in self.outputs] if outputs is None else list(outputs)
        initializers = self._model.graph.initializers
        return {name: values[name] if name in values else _array(initializers[name].const_value) for name in names}

    def _run_part(self, part: Part, values: Mapping[str, Array]) -> dict[str, Array]:
        feeds = {value.name or "": values[value.name or ""] for value in part.taken}
        for value in part.taken:
            value.dtype = ir.DataType.from_numpy(feeds[value.name or ""].dtype)
            value.shape = None
        handed_over: dict[str, Array] = {}
        fed: list[ir.Value] = []
        in_place: list[str] = []
        for value in part.weights:
            tensor = self._weights[value]
            if not may_be_handed_over(tensor, smallest_bytes=_SMALLEST_HANDED_OVER_BYTES):
                value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=value.name)
            elif _multiplied_by_integers(value):
                handed_over[value.name or ""] = ready(tensor)
                in_place.append(value.name or "")
                value.const_value = place_holder(tensor, value.name or "")
            elif tensor.dtype in _FED and read_in_place(value):
                # Weights that are handed over are copied; inputs are read where they are.
                feeds[value.name or ""] = ready(tensor)
                fed.append(value)
                value.const_value, value.type = None, ir.TensorType(tensor.dtype)
                value.shape = ir.Shape(tensor.shape.numpy())
            else:
                handed_over[value.name or ""] = ready(tensor)
                value.const_value = place_holder(tensor, value.name or "")
        try:
            message = ir.to_proto(part_of(self._model, part, fed)).SerializeToString()
            return Session(
                message,
                mapped=True,
                weights=handed_over,
                in_place=in_place,
                prepacks=any(map(_rounds_activations, part.nodes)),
            ).run(feeds)
        finally:
            handed_over.clear()
            feeds.clear()
            for value in part.weights:
                value.const_value = self._weights[value]


def _groups(model: ir.Model, largest_part_bytes: int) -> Iterator[list[ir.Node]]:
    group: list[ir.Node] = []
    held: set[ir.Value] = set()
    held_bytes = 0
    for node in model.graph:
        reads = {value for value in read_by(node) if value.is_initializer()}
        new = reads - held
        if group and held_bytes + sum(map(_nbytes, new)) > largest_part_bytes:
            yield group
            group, held, held_bytes, new = [], set(), 0, reads
        group.append(node)
        held |= new
        held_bytes += sum(map(_nbytes, new))
    if group:
        yield group


def _multiplied_by_integers(value: ir.Value) -> bool:
    return read_in_place(value) and all(_rounds_activations(use.node) for use in value.uses())


def _rounds_activations(node: ir.Node) -> bool:
    """Returns whether a kernel rounds the activations that it multiplies, which it does only with packed weights."""
    return node.op_type == "MatMulNBits" and integer_attribute(node, "accuracy_level", 0) == INTEGER_LEVEL


def _nbytes(value: ir.Value) -> int:
    """Returns the bytes that a weight takes while it is in use: most kernels convert others to float32 in addition."""
    tensor = value.const_value
    if tensor is None:
        return 0
    return tensor.nbytes + (tensor.size * _FLOAT_BYTES if tensor.dtype in _CONVERTED else 0)


def _array(tensor: ir.TensorProtocol | None) -> Array:
    return np.empty(0) if tensor is None else tensor.numpy()


def _spec(value: ir.Value) -> TensorSpec:
    dims = None if value.shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    dtype = np.dtype(np.float32) if value.dtype is None else np.dtype(value.dtype.numpy())
    return TensorSpec(value.name or "", dtype, dims)
