"""Recovers the torch names of a graph's weights from the metadata and names that exporters leave."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.formats.scratch import kept_aside
from qtool.graph.constants import is_constant
from qtool.graph.weight_records import WeightRecord, record_of
from qtool.lora.onnx.layer_biases import layers_of
from qtool.qdq.packed_integers import is_packed, packed_integers, packed_record
from qtool.qdq.stored_integers import stored_integers

# The metadata in which torch.onnx records the inputs of folded constants.
_PRODUCTS = ("MatMul", "MatMulNBits")
_Stored: TypeAlias = tuple[ir.Value, ir.TensorProtocol, WeightRecord | None]
_FLOATS = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)
_FOLDED_FROM = "pkg.onnxscript.optimizer.folded_from"


class NamedWeights(Mapping[str, npt.NDArray[Any]]):
    """Weights by their torch names, which are read from the graph as it was each time that they are asked for."""

    def __init__(self, sources: Mapping[str, tuple[ir.TensorProtocol, bool]]) -> None:
        """Takes each tensor, and whether it is to be transposed."""
        self._sources = sources

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Returns the values of one weight."""
        tensor, is_turned = self._sources[name]
        return tensor.numpy().T if is_turned else tensor.numpy()

    def __iter__(self) -> Iterator[str]:
        """Goes through the names."""
        return iter(self._sources)

    def __len__(self) -> int:
        """Counts the weights."""
        return len(self._sources)


def weights_by_name(model: ir.Model) -> NamedWeights:
    """Returns the float tensors, and weights in blocks, with known torch names, with outputs first as in torch."""
    found: dict[str, tuple[ir.TensorProtocol, bool]] = {}
    for value, stored, record in (*_floats(model), *_blocks(model)):
        undone = record is not None and record.steps
        array = record.undo(stored.numpy()) if record is not None and undone else None
        if (undone and array is None) or value.name is None:
            continue
        tensor = stored if array is None else ir.tensor(kept_aside(array))
        first_name = value.name if record is None else record.name
        name = _folded_name(value) or _name_by_path(value, first_name)
        if name is not None and len(tensor.shape) == 2:
            found[name] = (tensor, True)
        elif "::" not in first_name and "." in first_name:
            found[first_name] = (tensor, False)
    return NamedWeights(found)


def _floats(model: ir.Model) -> Iterator[_Stored]:
    for value in model.graph.initializers.values():
        tensor = value.const_value if is_constant(value) else None
        if tensor is not None and tensor.dtype in _FLOATS:
            yield value, tensor, record_of(value)


def _blocks(model: ir.Model) -> Iterator[_Stored]:
    """Yields the weights in blocks whose original names are recorded, dequantized."""
    seen = set()
    for node in model.graph:
        if is_packed(node):
            stored = packed_integers(node)
            record = None if stored is None else packed_record(stored)
        else:
            stored = stored_integers(node) if node.op_type == "DequantizeLinear" else None
            record = None if stored is None or not stored.block else record_of(stored.value)
        if stored is not None and record is not None and stored.value not in seen:
            seen.add(stored.value)
            yield stored.value, ir.tensor(kept_aside(stored.floats().astype(np.float32))), record


def _folded_name(value: ir.Value) -> str | None:
    """Returns the name of the parameter of which a value is the transposed form."""
    text = value.metadata_props.get(_FOLDED_FROM)
    if text is None:
        return None
    try:
        sources = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    single = isinstance(sources, list) and len(sources) == 1 and isinstance(sources[0], str)
    return sources[0] if single and all(layer.op_type in _PRODUCTS for layer in layers_of(value, None)) else None


def _name_by_path(value: ir.Value, name: str) -> str | None:
    """Returns the name of a weight that the older exporter calls ``onnx::MatMul_7``, by the path of its node."""
    paths = {layer.name for layer in layers_of(value, None) if layer.op_type in _PRODUCTS}
    if not name.startswith("onnx::MatMul") or len(paths) != 1:
        return None
    path = next(iter(paths)) or ""
    module = path.strip("/").rpartition("/")[0].replace("/", ".")
    return f"{module}.weight" if module else None
