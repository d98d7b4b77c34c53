"""Small float graphs in the forms that exporters write, for the contract of the prepare passes."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

_GRAPHS = {path.stem: path for path in (Path(__file__).parent / "graphs").rglob("*.txt")}


@pytest.fixture(params=sorted(_GRAPHS))
def float_model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    """One small float model, valid and runnable as it stands.

    What a text declares without values becomes a constant with random ones; named ``var`` or ``std``, positive ones.
    """
    text = _GRAPHS[request.param].read_text(encoding="utf-8")
    model = parser.parse_model(text)
    for declared in model.graph.value_info:
        model.graph.initializer.append(numpy_helper.from_array(_random_values(declared), declared.name))
    del model.graph.value_info[:]
    model.metadata_props.add(key="author", value="a person")
    return model


def _random_values(declared: onnx.ValueInfoProto) -> np.ndarray:
    kind = declared.type.tensor_type
    # The name seeds them, so that tensors of one shape differ.
    rng = np.random.default_rng(zlib.crc32(declared.name.encode()))
    values = rng.normal(0.0, 0.5, [dim.dim_value for dim in kind.shape.dim])
    if declared.name in ("var", "std"):
        values = np.abs(values) + 0.5
    return values.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
