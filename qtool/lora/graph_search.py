"""Finds where the weights of a checkpoint are in a graph that was exported from it.

Names are no guide: exporters rename and transpose the weights of Linear layers, store equal ones once, join several
into one, and multiply normalization into convolutions. The values tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.errors import InputError
from qtool.lora.stored_integers import StoredIntegers, stored_integers
from qtool.passes.constants import is_constant

Array = npt.NDArray[Any]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
# What a channel of a weight may differ from a multiple of the checkpoint's, as a share of its norm: the rounding of
# what was multiplied into it; and that of eight-bit integers with error feedback, to which unrelated weights never come
# near.
_FLOAT_TOLERANCE = 1e-5
_INTEGER_TOLERANCE = 0.15
_FOUR_BIT_TOLERANCE = 0.4
# Of integers of 32 bits, which hold biases.
_BIAS_TOLERANCE = 1e-3
# What reads weights that no exporter multiplies anything into.
NEVER_SCALED = frozenset({"MatMul", "Gather", "Add", "LayerNormalization", "Identity"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Says where a weight is in the graph, and in which form.

    Attributes:
        stored: the initializer.
        transposed: whether it holds the transposed weight.
        offset: where it begins along the last axis of an initializer that holds several; None where it is alone.
        length: how long it is there.
        channel_scale: what each output channel was multiplied with; None where it is as in the checkpoint.
        dequantize: the node that makes floats of it, where it holds integers.
        nodes: the nodes that read this weight from it; None for all of them.
    """

    stored: ir.Value
    transposed: bool = False
    offset: int | None = None
    length: int = 0
    channel_scale: Array | None = None
    dequantize: ir.Node | None = None
    nodes: tuple[ir.Node, ...] | None = None

    @property
    def form(self) -> str:
        """Names the form for people."""
        parts = ["transposed"] if self.transposed else []
        parts += ["joined with others"] if self.offset is not None else []
        parts += ["scaled by a normalization"] if self.channel_scale is not None else []
        parts += ["quantized"] if self.dequantize is not None else []
        return ", ".join(parts) or "as it is"


class GraphSearch:
    """Looks for weights in the initializers of one graph."""

    def __init__(self, model: ir.Model, base: Mapping[str, Array], tied: Mapping[str, str]) -> None:
        """Reads every stored tensor once.

        Args:
            model: the graph.
            base: the tensors of the checkpoint.
            tied: for each tensor that is another name of an earlier one, the name of the first.
        """
        self._base = base
        self._tied = tied
        self._exact: dict[str, list[ir.Value]] = {}
        self._floats: list[ir.Value] = []
        self._integers: list[tuple[ir.Node, StoredIntegers]] = []
        for graph in model.graphs():
            for value in graph.initializers.values():
                if is_constant(value) and value.dtype in _FLOATS and value.const_value is not None:
                    self._floats.append(value)
                    self._exact.setdefault(_digest(value.const_value.numpy()), []).append(value)
        for node in model.graph.all_nodes():
            stored = stored_integers(node) if node.op_type == "DequantizeLinear" else None
            if stored is not None:
                self._integers.append((node, stored))
        self._twins = self._names_by_values()

    def _names_by_values(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, array in self._base.items():
            if name not in self._tied:
                found.setdefault(_digest(array), []).append(name)
        return found

    def places(self, name: str) -> list[Place]:
        """Returns every place of the tensor ``name``.

        Raises:
            InputError: it is nowhere, or nothing tells it from others of the same values.
        """
        weight = self._base[name]
        for found in (self._alone(weight), self._joined(weight), self._scaled(weight), self._quantized(weight)):
            if found:
                return self._own(name, found)
        raise InputError(
            f"the graph does not hold the values of '{name}' in any form: it was exported from other weights, or they "
            "were changed since",
            fix="give the checkpoint that the graph was exported from with --base-weights, or merge into that "
            "checkpoint and export it again",
        )

    def _alone(self, weight: Array) -> list[Place]:
        found: dict[str, Place] = {}
        for dtype in (np.float32, np.float16, np.float64):
            cast = weight.astype(dtype)
            for value in self._exact.get(_digest(cast), ()):
                found[value.name or ""] = Place(stored=value)
            if weight.ndim == 2:
                for value in self._exact.get(_digest(cast.T), ()):
                    found.setdefault(value.name or "", Place(stored=value, transposed=True))
        return list(found.values())

    def _joined(self, weight: Array) -> list[Place]:
        """Finds a matrix among others of the same size, side by side in one initializer."""
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
                scale = _channel_scale(array, weight, _FLOAT_TOLERANCE)
                if scale is not None:
                    found.append(Place(stored=value, channel_scale=scale))
        return found

    def _quantized(self, weight: Array) -> list[Place]:
        found = []
        for node, stored in self._integers:
            if sorted(stored.integers.shape) != sorted(weight.shape) or node.inputs[0] is None:
                continue
            floats = stored.floats()
            if weight.ndim == 1:
                if stored.bits == 32 and np.linalg.norm(floats - weight) <= _BIAS_TOLERANCE * np.linalg.norm(weight):
                    found.append(Place(stored=node.inputs[0], dequantize=node))
                continue
            for transposed in (False, True) if weight.ndim == 2 else (False,):
                array = floats.T if transposed else floats
                if array.shape != weight.shape:
                    continue
                scale = _channel_scale(array, weight, _FOUR_BIT_TOLERANCE if stored.bits == 4 else _INTEGER_TOLERANCE)
                if scale is not None:
                    readers = {use.node.op_type for use in node.outputs[0].uses()}
                    plain = readers <= NEVER_SCALED or _is_one(scale, array, weight)
                    place = Place(stored=node.inputs[0], transposed=transposed, dequantize=node)
                    found.append(place if plain else replace(place, channel_scale=scale))
                    break
        return found

    def _arrays(self, ndim: int) -> Iterator[tuple[ir.Value, Array]]:
        for value in self._floats:
            if value.shape is not None and len(value.shape) == ndim and value.const_value is not None:
                yield value, value.const_value.numpy()

    def _own(self, name: str, places: Sequence[Place]) -> list[Place]:
        """Keeps what belongs to ``name``, where other tensors of the checkpoint hold the same values."""
        twins = [other for other in self._twins[_digest(self._base[name])] if other != name]
        if not twins:
            return list(places)
        own = []
        for place in places:
            nodes = [place.dequantize] if place.dequantize else [use.node for use in place.stored.uses()]
            mine = tuple(node for node in nodes if _is_of(node, place.stored, name))
            others = [node for node in nodes if any(_is_of(node, place.stored, twin) for twin in twins)]
            if set(mine) & set(others) or not set(mine) | set(others) >= set(nodes):
                raise InputError(
                    f"'{name}' and '{twins[0]}' hold the same values, and nothing in the graph tells which of its "
                    "nodes belong to which",
                    fix="merge into the checkpoint, and export it again",
                )
            if mine:
                own.append(replace(place, nodes=mine))
        if not own:
            raise InputError(
                f"the graph holds the values of '{name}', but only for '{twins[0]}', which has the same",
                fix="merge into the checkpoint, and export it again",
            )
        return own


def _is_of(node: ir.Node, value: ir.Value, name: str) -> bool:
    """Tells whether a node computes the module of a tensor, by the names that exporters leave."""
    module = f".{name.rpartition('.')[0]}."
    # What stands between a tensor and the layer that reads it; the older exporter shares tensors through Identity.
    between = node.op_type in ("Identity", "DequantizeLinear")
    nodes = [use.node for use in node.outputs[0].uses()] if between else [node]
    texts = [text for reader in nodes for text in (reader.name, *reader.metadata_props.values()) if text]
    if any(module in f".{_dotted(text)}." for text in texts):
        return True
    return len(value.uses()) == 1 and value.name == name


def _dotted(text: str) -> str:
    for character in "/'\",:[] ":
        text = text.replace(character, ".")
    return text


def _digest(array: Array) -> str:
    plain = np.ascontiguousarray(array)
    mark = hashlib.blake2b(f"{plain.dtype}{plain.shape}".encode(), digest_size=16)
    mark.update(plain.data if plain.size else b"")
    return mark.hexdigest()


def _channel_scale(array: Array, weight: Array, tolerance: float) -> Array | None:
    """Returns c for which array ≈ c · weight, one number an output channel; None where there is none."""
    rows = weight.reshape(weight.shape[0], -1).astype(np.float64)
    seen = array.reshape(array.shape[0], -1).astype(np.float64)
    power = np.einsum("ij,ij->i", rows, rows)
    if not power.all():
        return None
    scale = np.einsum("ij,ij->i", seen, rows) / power
    left = np.linalg.norm(seen - scale[:, None] * rows, axis=1)
    whole: Array = np.linalg.norm(seen, axis=1)
    return scale if bool(np.all(left <= tolerance * whole)) and bool(whole.all()) else None


def _is_one(scale: Array, array: Array, weight: Array) -> bool:
    """Tells whether array = weight but for rounding: factors are as near to 1 as the rounding lets them be known."""
    rows, seen = (values.reshape(len(values), -1).astype(np.float64) for values in (weight, array))
    left = np.linalg.norm(seen - scale[:, None] * rows, axis=1)
    # The standard error of a factor that was fitted by least squares, five times.
    return bool(np.all(np.abs(scale - 1) <= 5 * left / (np.sqrt(rows.shape[1]) * np.linalg.norm(rows, axis=1))))
