"""Finds where the weights of a checkpoint are in a graph that was exported from it.

Names are not reliable: exporters rename and transpose the weights of Linear layers, store equal ones once, join several
into one, and fold normalization into convolutions. Weights are found by their values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.errors import InputError
from qtool.graph.constants import constant_array, is_constant
from qtool.graph.weight_records import WeightRecord, record_of
from qtool.lora.merge.ties import EMBEDDINGS
from qtool.lora.onnx.channel_scales import channel_scale
from qtool.lora.onnx.equal_arrays import EqualArrays
from qtool.lora.onnx.layer_biases import bias_input, layers_of
from qtool.lora.onnx.places import FLOAT_TOLERANCE, Place, first_numbers, integer_place, recorded_place, resembles
from qtool.qdq.packed_integers import is_packed, packed_integers, packed_record
from qtool.qdq.stored_integers import INTEGER_LAYERS, StoredIntegers, stored_integers

Array = npt.NDArray[Any]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_LOOK_UPS = ("Gather", "GatherBlockQuantized")
_FIX_OF_TWINS = "merge into the checkpoint and export it again"
# The type of quantized biases.
_BIAS_TOLERANCE = 1e-3


class GraphSearch:
    """Searches weights in the initializers of one graph."""

    def __init__(
        self, model: ir.Model, base: Mapping[str, Array], tied: Mapping[str, str], *, named: bool = False
    ) -> None:
        """Reads every stored tensor once.

        Args:
            model: the graph.
            base: the tensors of the checkpoint.
            tied: for each name of a tied tensor but the first, the first one.
            named: whether the user named the checkpoint, so that errors do not suggest it.
        """
        self._base = base
        self._named = named
        self._exact: EqualArrays[ir.Value] = EqualArrays(_stored_array)
        self._floats: list[ir.Value] = []
        self._recorded: list[tuple[ir.Value, WeightRecord, Array | None]] = []
        self._integers: list[tuple[tuple[ir.Node, ...], StoredIntegers, WeightRecord | None]] = []
        self._unread: list[ir.Node] = []
        for graph in model.graphs():
            for value in graph.initializers.values():
                if not is_constant(value) or value.dtype not in _FLOATS or value.const_value is None:
                    continue
                record = record_of(value)
                if record is not None and record.steps and not record.is_transposed_only:
                    self._recorded.append((value, record, first_numbers(value, record)))
                else:
                    self._floats.append(value)
                    self._exact.add(value, _stored_array(value))
        for node in model.graph.all_nodes():
            stored = stored_integers(node) if node.op_type in INTEGER_LAYERS else None
            if stored is not None:
                self._integers.append(((node,), stored, record_of(stored.value)))
        self._find_packed(model)
        self._names: EqualArrays[str] = EqualArrays(base.__getitem__)
        for name, array in base.items():
            if name not in tied:
                self._names.add(name, array)

    def _find_packed(self, model: ir.Model) -> None:
        """Finds packed integers in blocks, each with all of its readers."""
        readers: dict[ir.Value, list[ir.Node]] = {}
        found: dict[ir.Value, StoredIntegers] = {}
        for node in model.graph.all_nodes():
            if not is_packed(node):
                continue
            stored = packed_integers(node)
            if stored is None:
                self._unread.append(node)
                continue
            found.setdefault(stored.value, stored)
            readers.setdefault(stored.value, []).append(node)
        for value, stored in found.items():
            self._integers.append((tuple(readers[value]), stored, packed_record(stored)))

    def places(self, name: str) -> list[Place]:
        """Returns every place of the tensor ``name``.

        Raises:
            InputError: it is nowhere, or ambiguous among others with the same values.
        """
        biases = self._biases(name)
        if biases:
            return biases
        weight = self._base[name]
        # A tensor with several readers may be scaled for one of them and quantized for another.
        found = [
            *(self._alone(weight) or self._joined(weight)),
            *self._after_passes(weight),
            *self._quantized(weight, name),
        ]
        found = found or self._scaled(weight)
        if found:
            return self._own(name, found)
        if self._unread:
            node = self._unread[0]
            raise InputError(
                f"'{name}' is not found in the graph, where the weight of {node.op_type} '{node.name}' has a form of "
                "blocks that qtool does not read: reordered inputs (g_idx), float zero points, or no stored bytes",
                fix="merge into the checkpoint, export it again and quantize that",
            )
        begin = "check that" if self._named else "give the checkpoint that the graph was exported from with"
        end = " is the checkpoint that the graph was exported from" if self._named else ""
        raise InputError(
            f"the graph does not hold the values of '{name}' in any form: it was exported from other weights, or they "
            "were changed since",
            fix=f"{begin} --base-weights{end}, or merge into that checkpoint and export it again",
        )

    def _biases(self, name: str) -> list[Place]:
        """Finds a bias by the layer that reads it, since a folded normalization changes its values."""
        module, _, parameter = name.rpartition(".")
        weight = self._base.get(f"{module}.weight")
        if parameter != "bias" or weight is None or weight.ndim < 2:
            return []
        try:
            places = self.places(f"{module}.weight")
        except InputError:
            return []
        found = []
        for place in places:
            for layer in layers_of(place.stored, place.nodes):
                bias = self._bias(layer, place, self._base[name])
                if bias is None:
                    return []
                found.append(bias)
        return found

    def _bias(self, layer: ir.Node, weight: Place, values: Array) -> Place | None:
        taken = bias_input(layer)
        value = None if taken is None else taken[0].inputs[taken[1]]
        if taken is None or value is None or (weight.offset is not None and not weight.transposed):
            return None
        producer = value.producer()
        stored = value if producer is None else producer.inputs[0]
        array = constant_array(stored)
        beta = layer.attributes.get("beta")
        if stored is None or array is None or (beta is not None and beta.as_float() != 1.0):
            return None
        factors = np.ones(()) if weight.record is None else weight.record.output_factors
        factors = factors if weight.channel_scale is None else factors * weight.channel_scale
        room = array.size if weight.offset is None else weight.length
        if values.size != room or factors.size not in (1, array.size) or (weight.offset is not None and array.ndim > 1):
            return None
        if weight.offset is not None and factors.size > 1:
            factors = factors[weight.offset : weight.offset + weight.length]
        return Place(
            stored=stored,
            offset=weight.offset,
            length=weight.length,
            channel_scale=factors.reshape(-1) if (factors != 1).any() else None,
            dequantize=producer,
            nodes=(taken[0],) if producer is None else (producer,),
        )

    def _after_passes(self, weight: Array) -> list[Place]:
        """Finds a weight by the records of passes."""
        found = []
        for value, record, numbers in self._recorded:
            for transposed in (False, True) if weight.ndim == 2 else (False,):
                place = recorded_place(value, record, numbers, weight, transposed=transposed)
                if place is not None:
                    found.append(place)
                    break
        return found

    def _alone(self, weight: Array) -> list[Place]:
        found: dict[str, Place] = {}
        for dtype in (np.float32, np.float16, np.float64):
            for transposed in (False, True) if weight.ndim == 2 else (False,):
                if not self._exact.has_form(dtype, weight.shape[::-1] if transposed else weight.shape):
                    continue
                cast = weight.astype(dtype, copy=False)
                for value in self._exact.equal_to(cast.T if transposed else cast):
                    found.setdefault(value.name or "", Place(stored=value, transposed=transposed))
        return list(found.values())

    def _joined(self, weight: Array) -> list[Place]:
        """Finds a matrix among others of the same size, joined in one initializer."""
        found = []
        for value, array in self._arrays(weight.ndim if weight.ndim <= 2 else 0):
            for transposed in (False, True) if weight.ndim == 2 else (False,):
                part = (weight.T if transposed else weight).astype(array.dtype)
                length = part.shape[-1]
                if array.shape[:-1] != part.shape[:-1] or array.shape[-1] <= length:
                    continue
                for offset in range(0, array.shape[-1] - length + 1, length):
                    if np.array_equal(array[..., offset : offset + length], part):
                        place = Place(stored=value, transposed=transposed, offset=offset, length=length)
                        found.append(place)
        return found

    def _scaled(self, weight: Array) -> list[Place]:
        if weight.ndim < 2:
            return []
        found = []
        for value, array in self._arrays(weight.ndim):
            if array.shape == weight.shape:
                scale = channel_scale(array, weight, FLOAT_TOLERANCE)
                if scale is not None:
                    found.append(Place(stored=value, channel_scale=scale))
            if weight.ndim == 2 and array.shape == weight.T.shape:
                scale = channel_scale(array.T, weight, FLOAT_TOLERANCE)
                if scale is not None:
                    found.append(Place(stored=value, transposed=True, channel_scale=scale))
        return found

    def _quantized(self, weight: Array, name: str) -> list[Place]:
        found = []
        for nodes, stored, record in self._integers:
            value, size = stored.value, int(np.prod(weight.shape))
            if stored.integers.size != size:
                continue
            if weight.ndim == 1:
                floats = stored.floats()
                near = _BIAS_TOLERANCE * np.linalg.norm(weight)
                if stored.bits == 32 and floats.ndim == 1 and np.linalg.norm(floats - weight) <= near:
                    found.append(Place(stored=value, dequantize=nodes[0]))
                continue
            for transposed in (False, True) if weight.ndim == 2 else (False,):
                if is_packed(nodes[0]) and not resembles(stored, record, weight.T if transposed else weight):
                    continue
                place = integer_place(nodes, stored, record, weight, name, transposed=transposed)
                if place is not None:
                    found.append(place)
                    break
        return found

    def _arrays(self, ndim: int) -> Iterator[tuple[ir.Value, Array]]:
        for value in self._floats:
            if value.shape is not None and len(value.shape) == ndim and value.const_value is not None:
                yield value, value.const_value.numpy()

    def _own(self, name: str, places: Sequence[Place]) -> list[Place]:
        """Keeps the places that belong to ``name``, where other tensors of the checkpoint hold the same values."""
        twins = self._names.others_like(name)
        if not twins:
            return list(places)
        own = []
        absent = set(twins)
        for place in places:
            alone = [place.dequantize] if place.dequantize else [use.node for use in place.stored.uses()]
            nodes = list(place.nodes) if place.dequantize and place.nodes else alone
            owned = _owned_by_operators if _is_tied_head(name, twins) else _is_of
            mine = tuple(node for node in nodes if owned(node, place.stored, name))
            theirs = {twin: [node for node in nodes if owned(node, place.stored, twin)] for twin in twins}
            others = [node for found in theirs.values() for node in found]
            absent -= {twin for twin, found in theirs.items() if found}
            if set(mine) & set(others) or not set(mine) | set(others) >= set(nodes):
                raise InputError(
                    f"'{name}' and '{twins[0]}' hold the same values, and nothing in the graph tells which of its "
                    "nodes belong to which",
                    fix=_FIX_OF_TWINS,
                )
            if mine:
                dequantize = mine[0] if place.dequantize else None
                own.append(replace(place, nodes=mine, dequantize=dequantize))
        if not own:
            raise InputError(
                f"the graph holds the values of '{name}', but only for '{twins[0]}', which has the same",
                fix=_FIX_OF_TWINS,
            )
        if absent:
            raise InputError(
                f"'{name}' and '{min(absent)}' hold the same values, and the graph may compute with both what it "
                "computes once",
                fix=_FIX_OF_TWINS,
            )
        return own


def _is_of(node: ir.Node, value: ir.Value, name: str) -> bool:
    """Returns whether a node computes the module of a tensor, by the names that exporters leave."""
    module = f".{name.rpartition('.')[0]}."
    # Operators between a tensor and the layer that reads it; the older exporter shares tensors through Identity.
    between = node.op_type in ("Identity", "DequantizeLinear")
    nodes = [use.node for use in node.outputs[0].uses()] if between else [node]
    texts = [text for reader in nodes for text in (reader.name, *reader.metadata_props.values()) if text]
    if any(module in f".{_dotted(text)}." for text in texts):
        return True
    return len(value.uses()) == 1 and value.name == name


def _is_tied_head(name: str, twins: Sequence[str]) -> bool:
    """Returns whether the names of one tensor are those of an embedding and of a tied head."""
    return len(twins) == 1 and name.endswith(EMBEDDINGS) != twins[0].endswith(EMBEDDINGS)


def _owned_by_operators(node: ir.Node, value: ir.Value, name: str) -> bool:
    """Returns whether a node belongs to an embedding, which looks up rows, or to a head, by its operators."""
    producer = None if node.inputs[0] is None else node.inputs[0].producer()
    behind = producer is not None and producer.op_type == "Gather" and producer.inputs[0] is value
    looks_up = {True} if behind else {layer.op_type in _LOOK_UPS for layer in layers_of(value, (node,))}
    return looks_up == {name.endswith(EMBEDDINGS)}


def _dotted(text: str) -> str:
    for character in "/'\",:[] ":
        text = text.replace(character, ".")
    return text


def _stored_array(value: ir.Value) -> Array:
    assert value.const_value is not None
    array: Array = value.const_value.numpy()
    return array
