"""Writes OpenVINO's intermediate representation (IR) with OpenVINO itself.

Source: https://docs.openvino.ai/2026/openvino-workflow/model-preparation/convert-model-to-ir.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtool.backends.openvino.installed import check_installed
from qtool.backends.openvino.session import told
from qtool.errors import InputError


def write_ir(graph: Path, path: Path, *, halves: bool) -> None:
    """Writes the graph of an ONNX file to ``path``, an ``.xml`` file, and its weights to a ``.bin`` file beside it.

    With ``halves``, float weights are stored as float16.

    Raises:
        UsageError: OpenVINO is not installed.
        InputError: it does not convert the graph.
    """
    check_installed()
    import openvino

    try:
        model = openvino.Core().read_model(graph)
        _name_steadily(model)
        openvino.save_model(model, path, compress_to_fp16=halves)
    except RuntimeError as error:
        raise InputError(
            f"OpenVINO does not convert {graph.name}: {told(error)}",
            fix="run `qtool optimize` on it first, or convert the part that OpenVINO supports (`qtool split`)",
        ) from error


def _name_steadily(model: Any) -> None:
    """Names operators that have no name by their place, instead of by how many this process has made before."""
    operators = model.get_ordered_ops()
    unnamed = [operator for operator in operators if operator.get_friendly_name() == operator.get_name()]
    taken = {operator.get_friendly_name() for operator in operators}.difference(
        operator.get_friendly_name() for operator in unnamed
    )
    for number, operator in enumerate(unnamed):
        name = f"{operator.get_type_name()}_{number}"
        while name in taken:
            name += "_"
        operator.set_friendly_name(name)
