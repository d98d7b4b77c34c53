"""The format of ``.onnx`` files: recognizes them by their fields, without the onnx package.

Source: ``ModelProto`` in https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from qtool.formats import protobuf
from qtool.formats.candidate import Candidate, Recognized
from qtool.formats.errors import FormatError

if TYPE_CHECKING:
    import onnx_ir as ir

    from qtool.formats.findings import AuditNotes

# Fields of ModelProto: numbers and wire types.
_IR_VERSION, _PRODUCER_NAME, _GRAPH = 1, 2, 7
_MODEL_FIELDS = {
    **dict.fromkeys((1, 5), protobuf.VARINT),
    **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), protobuf.BYTES),
}
_GRAPH_NODE = 1
_LONGEST_NAME_BYTES = 1024


class OnnxFormat:
    """Stores programs as ``.onnx``, with the weights of large ones in a second file."""

    holds: ClassVar[Literal["graph"]] = "graph"
    suffix: ClassVar[str] = ".onnx"

    def recognize(self, file: Candidate) -> Recognized | None:
        """Recognizes a message with the fields of a model, also one that ends too early or has no operators."""
        ir_version: int | None = None
        graphs: list[protobuf.Field] = []
        if not file.head:
            return None
        with file.path.open("rb") as stream:
            try:
                for field in protobuf.fields(stream, 0, file.nbytes):
                    if _MODEL_FIELDS.get(field.number) != field.wire_type or not _plausible(field):
                        return None
                    if field.number == _IR_VERSION:
                        ir_version = field.value
                    if field.number == _GRAPH:
                        graphs.append(field)
                nodes = any(
                    field.number == _GRAPH_NODE
                    for graph in graphs
                    for field in protobuf.fields(stream, graph.start, graph.end)
                )
            except protobuf.WireError as error:
                if ir_version is None or not error.cut_short:
                    return None
                return Recognized(_kind(ir_version), damage=_truncated(file))
        if ir_version is None:
            return None
        return Recognized(_kind(ir_version), damage=None if nodes else _without_operators(file))

    def audit(self, path: Path, notes: AuditNotes) -> None:
        """Notes tensors that take their values from outside, and those whose values do not fit their shapes.

        Raises:
            FormatError: the model is damaged.
        """
        from qtool.formats.onnx.onnx_file import audit_external_data

        audit_external_data(path, notes)

    def companion_files(self, path: Path) -> tuple[str, ...]:
        """Returns the files, relative to its folder, in which the model keeps weights.

        Raises:
            FormatError: the model is damaged, or such a file is missing, too short, or outside of its folder.
        """
        from qtool.formats.onnx.onnx_file import external_files

        return external_files(path)

    def read(self, path: Path) -> ir.Model:
        """Reads the model; weights in external files stay there until they are used.

        Raises:
            FormatError: the file is damaged, or the location of its weights is invalid.
        """
        from qtool.formats.onnx.onnx_file import OnnxFile

        return OnnxFile().read(path)

    def write(self, model: ir.Model, path: Path) -> None:
        """Writes the model; with more than about 1.8 GB of weights, these go to ``<name>.data`` beside it."""
        from qtool.formats.onnx.onnx_file import OnnxFile

        OnnxFile().write(model, path)


def _plausible(field: protobuf.Field) -> bool:
    if field.number == _IR_VERSION:
        return 1 <= field.value <= 99
    # A TensorFlow SavedModel has the same field numbers, with its graph in the field of the producer's name.
    return field.number != _PRODUCER_NAME or field.end - field.start <= _LONGEST_NAME_BYTES


def _kind(ir_version: int) -> str:
    return f"ONNX, IR version {ir_version}"


def _truncated(file: Candidate) -> FormatError:
    return FormatError(
        f"{file.path} begins like an ONNX model but is truncated after {file.nbytes:,} bytes",
        fix="save or download it again",
    )


def _without_operators(file: Candidate) -> FormatError:
    return FormatError(
        f"{file.path} reads like an ONNX model without a single operator, so it is damaged or of another kind",
        fix="export the model again",
    )
