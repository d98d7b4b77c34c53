"""Size of a model on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from qtool.errors import InputError
from qtool.formats.onnx.map_types import load_model


def model_bytes(path: Path) -> int:
    """Returns the bytes of an ONNX file and of its external data files, each counted once.

    Raises:
        InputError: it does not exist, is not an ONNX model, or a file with its weights is missing.
    """
    if not path.is_file():
        raise InputError(f"there is no model at {path}", fix="check the path")
    try:
        model = load_model(path)
    except Exception as error:  # protobuf's errors share no base class over its versions
        raise InputError(
            f"{path} is not an ONNX model, or is damaged", fix="give an .onnx file, such as `qtool convert` makes"
        ) from error
    total = path.stat().st_size
    for location in sorted({os.fspath(tensor.location) for tensor in _external_tensors(model)}):
        part = path.parent / location
        if not part.is_file():
            raise InputError(
                f"{part}, which holds weights of {path.name}, does not exist",
                fix="copy it next to the model, under this name",
            )
        total += part.stat().st_size
    return total


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if isinstance(attribute.value, ir.ExternalTensor):
                    yield attribute.value
