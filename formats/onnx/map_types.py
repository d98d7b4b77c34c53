"""Removes map types from graphs on reading, since onnx-ir does not support them, and restores them in files.

Source: ZipMap in https://onnx.ai/onnx/operators/onnx_aionnxml_ZipMap.html, which makes a sequence of maps.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from qtool.formats.errors import FormatError
from qtool.formats.onnx.onnx_outline import read_outline
from qtool.formats.onnx.stored_tensor import leave_in_files

_ML_DOMAIN = "ai.onnx.ml"


def load_model(path: Path) -> ir.Model:
    """Reads a graph whose file has been checked before, as ``OnnxFile`` does; its weights stay in the file."""
    proto = read_outline(path)
    without_map_types(proto.graph, path)
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, path.parent)
    leave_in_files(model)
    return model


def without_map_types(graph: onnx.GraphProto, path: Path) -> None:
    """Clears the types of outputs and inner values that hold maps; runtimes know them from the operators.

    Raises:
        FormatError: an input is a map, which no data holds.
    """
    for value in graph.input:
        if holds_maps(value.type):
            raise FormatError(
                f"{path} has a map as its input '{value.name}', which arrays cannot represent",
                fix="export the model with a tensor as its input",
            )
    for value in graph.output:
        if holds_maps(value.type):
            value.ClearField("type")
    kept = [value for value in graph.value_info if not holds_maps(value.type)]
    if len(kept) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(kept)


def write_map_types(path: Path) -> None:
    """Gives the outputs of ZipMap in a file their types."""
    model = onnx.load(path, load_external_data=False)
    producers = {name: node for node in model.graph.node for name in node.output}
    changed = False
    for value in model.graph.output:
        node = producers.get(value.name)
        if node is None or node.domain != _ML_DOMAIN or node.op_type != "ZipMap" or value.HasField("type"):
            continue
        has_texts = any(attribute.name == "classlabels_strings" for attribute in node.attribute)
        key = onnx.TensorProto.STRING if has_texts else onnx.TensorProto.INT64
        score = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
        value.type.CopyFrom(onnx.helper.make_sequence_type_proto(onnx.helper.make_map_type_proto(key, score)))
        changed = True
    if changed:
        path.write_bytes(model.SerializeToString(deterministic=True))


def holds_maps(kind: onnx.TypeProto) -> bool:
    """Returns whether a type is that of a map, or of a sequence of maps."""
    return kind.HasField("map_type") or (kind.HasField("sequence_type") and holds_maps(kind.sequence_type.elem_type))
