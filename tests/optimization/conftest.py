"""Small graphs in the forms that exporters write, for the passes of `qtool optimize`."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper, parser

from qtool.runtime.session import Session

_HERE = Path(__file__).parent
_GRAPHS = {
    path.stem: path
    for folder in ("contracts", "optimization")
    for path in _HERE.parent.glob(f"{folder}/graphs/**/*.txt")
}
_FREE_LENGTH = 2


def parsed(text: str) -> onnx.ModelProto:
    """Reads a model; what its text declares without values becomes a constant with random ones.

    Those named ``var`` are positive.
    """
    model = parser.parse_model(text)
    for declared in model.graph.value_info:
        kind = declared.type.tensor_type
        # The name seeds them, so that tensors of one shape differ.
        rng = np.random.default_rng(zlib.crc32(declared.name.encode()))
        values = rng.normal(0.0, 0.5, [dim.dim_value for dim in kind.shape.dim])
        values = np.abs(values) + 0.5 if declared.name in ("var", "std") else values
        array = values.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        model.graph.initializer.append(numpy_helper.from_array(array, declared.name))
    del model.graph.value_info[:]
    return model


def run_model(model: onnx.ModelProto, seed: int = 11) -> dict[str, npt.NDArray[Any]]:
    """Runs a model, as it is written, on random inputs."""
    session = Session(model.SerializeToString(), threads=1, level="none")
    stored = {initializer.name for initializer in model.graph.initializer}
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in session.inputs:
        if spec.name in stored:
            continue
        shape = [length if isinstance(length, int) else _FREE_LENGTH for length in spec.shape or ()]
        values = rng.normal(0.5, 2.0, shape) if spec.dtype.kind == "f" else rng.integers(0, 7, shape)
        feeds[spec.name] = values.astype(spec.dtype)
    return session.run(feeds)


def operators(model: onnx.ModelProto) -> list[str]:
    """Returns the operators of a graph, sorted, those of subgraphs included."""
    return sorted(node.op_type for node in ir.from_proto(model).graph.all_nodes() if node.op_type != "Constant")


@pytest.fixture(params=sorted(_GRAPHS))
def model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    """One small float model after the other."""
    return parsed(_GRAPHS[request.param].read_text(encoding="utf-8"))


@pytest.fixture
def graph() -> Callable[..., onnx.ModelProto]:
    """Reads one of the small models by name, with one piece of its text replaced where two are given."""

    def read(name: str, old: str = "", new: str = "") -> onnx.ModelProto:
        text = _GRAPHS[name].read_text(encoding="utf-8")
        assert old in text
        return parsed(text.replace(old, new) if old else text)

    return read


@pytest.fixture
def outputs() -> Callable[[onnx.ModelProto], dict[str, npt.NDArray[Any]]]:
    """Runs a model, as it is written, on random inputs."""
    return run_model
