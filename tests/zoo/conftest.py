"""Small graphs, one for each oddity that models come with, and data that fits them.

A graph is a text file whose first lines say, behind a ``#``, what is odd, how close to float the result has to be, and
which inputs the data leaves out. Weights that it declares without values get random ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

SAMPLES = 24
# Lengths of dimensions that a graph leaves open.
_OPEN_LENGTH = 5
_IMAGE = (1, 3, 16, 16)


@dataclass(frozen=True)
class Oddity:
    """One graph, and what it may lose.

    Attributes:
        model: the graph with its weights.
        least_db: how close its outputs have to stay.
        left_out: inputs that the data does not hold.
    """

    model: onnx.ModelProto
    least_db: float
    left_out: frozenset[str]


Read: TypeAlias = Callable[[str], Oddity]
Feeds: TypeAlias = Callable[[onnx.ModelProto, frozenset[str]], dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def read() -> Read:
    """Reads one graph by name."""
    return _read


@pytest.fixture(scope="session")
def make_data() -> Feeds:
    """Makes one row a sample for every input but those left out."""

    def make(model: onnx.ModelProto, left_out: frozenset[str]) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(1)
        stored = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in left_out | stored]
        return {value.name: np.stack([_values(value, generator) for _ in range(SAMPLES)]) for value in inputs}

    return make


def _read(name: str) -> Oddity:
    (path,) = (Path(__file__).parent / "graphs").rglob(f"{name}.txt")
    text = path.read_text(encoding="utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    model = parser.parse_model("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    generator = np.random.default_rng(0)
    made = {output for node in model.graph.node for output in node.output}
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in list(model.graph.value_info):
        if value.name not in made | stored:
            model.graph.initializer.append(numpy_helper.from_array(_weight(value, generator), value.name))
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    least = next(float(found[1]) for line in comments if (found := re.search(r"at least (\d+) dB", line)))
    left_out = [line.partition("without ")[2].split(", ") for line in comments if "without " in line]
    return Oddity(model, least, frozenset(left_out[0]) if left_out else frozenset())


def _weight(value: onnx.ValueInfoProto, generator: np.random.Generator) -> np.ndarray:
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return generator.normal(0, 0.3, shape).astype(kind)


def _values(value: onnx.ValueInfoProto, generator: np.random.Generator) -> np.ndarray:
    """Returns one sample: the whole value of the input, but without an axis for samples where it has one."""
    dims = value.type.tensor_type.shape.dim
    if dims and not any(dim.dim_value or dim.dim_param for dim in dims):
        shape = list(_IMAGE)
    else:
        shape = [dim.dim_value or (1 if dim.dim_param == "N" else _OPEN_LENGTH) for dim in dims]
    if (dims and dims[0].dim_param == "N") or (len(shape) == len(_IMAGE) and shape[0] == 1):
        shape = shape[1:]
    kind = value.type.tensor_type.elem_type
    if kind == onnx.TensorProto.STRING:
        return np.full(shape, "text")
    if kind == onnx.TensorProto.BOOL:
        return generator.random(shape) < 0.5
    if kind == onnx.TensorProto.INT64:
        return generator.integers(0, 2, shape)
    return generator.normal(0, 1, shape).astype(helper.tensor_dtype_to_np_dtype(kind))
