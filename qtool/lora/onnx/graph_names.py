"""Recovers the torch names of a graph's weights from the metadata and names that exporters leave."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import constant_array, is_constant
from qtool.graph.weight_records import record_of

# The metadata in which torch.onnx records the inputs of folded constants.
_FOLDED_FROM = "pkg.onnxscript.optimizer.folded_from"


def weights_by_name(model: ir.Model) -> dict[str, npt.NDArray[Any]]:
    """Returns the float tensors with known torch names, with outputs first as in torch."""
    found: dict[str, npt.NDArray[Any]] = {}
    for value in model.graph.initializers.values():
        array = constant_array(value) if is_constant(value) else None
        if array is None or array.dtype not in (np.float16, np.float32, np.float64) or value.name is None:
            continue
        record = record_of(value)
        array = record.undo(array) if record is not None and record.steps else array
        if array is None:
            continue
        first_name = value.name if record is None else record.name
        name = _folded_name(value) or _name_by_path(value, first_name)
        if name is not None and array.ndim == 2:
            found[name] = array.T
        elif "::" not in first_name and "." in first_name:
            found[first_name] = array
    return found


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
    return sources[0] if single and all(use.node.op_type == "MatMul" for use in value.uses()) else None


def _name_by_path(value: ir.Value, name: str) -> str | None:
    """Returns the name of a weight that the older exporter calls ``onnx::MatMul_7``, by the path of its node."""
    paths = {use.node.name for use in value.uses() if use.node.op_type == "MatMul"}
    if not name.startswith("onnx::MatMul") or len(paths) != 1:
        return None
    path = next(iter(paths)) or ""
    module = path.strip("/").rpartition("/")[0].replace("/", ".")
    return f"{module}.weight" if module else None
