"""The cases that ONNX's own backend test keeps for each operator, as far as qtool computes it in torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.backend.test import loader

from qtool.learn.operators.registry import OPERATORS

# Older forms of operators are raised before anything is quantized.
_OLDEST = 13


@dataclass(frozen=True)
class NodeCase:
    """One case: a graph of one node, what it is fed, and what comes out."""

    name: str
    model: onnx.ModelProto
    inputs: tuple[npt.NDArray[Any], ...]
    outputs: tuple[npt.NDArray[Any], ...]

    @property
    def operator(self) -> str:
        return str(self.model.graph.node[0].op_type)


@cache
def node_cases() -> tuple[NodeCase, ...]:
    """Returns the cases of operators that qtool computes."""
    return tuple(_found())


def _found() -> Iterator[NodeCase]:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = loader.load_model_tests(kind="node")
    for case in cases:
        model = case.model
        if model is None or not case.data_sets:
            continue
        nodes, version = model.graph.node, {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
        if len(nodes) != 1 or version < _OLDEST or nodes[0].domain or nodes[0].op_type not in OPERATORS:
            continue
        kinds = [value.type for value in (*model.graph.input, *model.graph.output)]
        if all(kind.HasField("tensor_type") and _computed(kind) for kind in kinds):
            inputs, outputs = (tuple(np.asarray(array) for array in part) for part in case.data_sets[0])
            yield NodeCase(case.name.removeprefix("test_"), model, inputs, outputs)


def _computed(kind: onnx.TypeProto) -> bool:
    """Returns whether torch computes with a type."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)
    return np.dtype(dtype).name in _DTYPES


_DTYPES = {"float32", "float64", "int64", "int32", "bool", "int8"}
