"""The formats of TensorFlow's graphs: SavedModels and frozen graphs.

Source: ``GraphDef`` and ``NodeDef`` in https://github.com/tensorflow/tensorflow/tree/master/tensorflow/core/framework.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, ClassVar, Literal

from qtool.formats import protobuf
from qtool.formats.candidate import Candidate, Recognized
from qtool.formats.findings import AuditNotes, Risk
from qtool.formats.tensorflow.tensorflow_kinds import SAVED_MODEL_FILE
from qtool.formats.tensorflow.tensorflow_outline import TensorFlowOutline, read_graph_def, read_saved_model

# Fields of GraphDef: node, library, version and versions; and of NodeDef: name, operator.
_GRAPH_FIELDS = {1: protobuf.BYTES, 2: protobuf.BYTES, 3: protobuf.VARINT, 4: protobuf.BYTES, 5: protobuf.BYTES}
_NODE, _NODE_NAME, _NODE_OPERATOR, _LAST_NODE_FIELD = 1, 1, 2, 8
_NODES_TO_LOOK_AT = 20


class SavedModel:
    """Recognizes and audits the folders of SavedModels."""

    holds: ClassVar[Literal["tensorflow"]] = "tensorflow"

    def recognize(self, file: Candidate) -> Recognized | None:
        """Recognizes folders with ``saved_model.pb`` in them."""
        found = file.path.is_dir() and (file.path / SAVED_MODEL_FILE).is_file()
        return Recognized("TensorFlow SavedModel") if found else None

    def audit(self, path: Path, notes: AuditNotes) -> None:
        """Notes operators that reach outside.

        Raises:
            FormatError: the model is damaged.
        """
        _note_operators(read_saved_model(path), notes)


class FrozenGraph:
    """Recognizes and audits files with one GraphDef."""

    holds: ClassVar[Literal["tensorflow"]] = "tensorflow"

    def recognize(self, file: Candidate) -> Recognized | None:
        """Recognizes a message with nodes and nothing but the fields of a GraphDef; one that is truncated is none."""
        return Recognized("frozen TensorFlow graph") if file.head and _is_graph_def(file) else None

    def audit(self, path: Path, notes: AuditNotes) -> None:
        """Notes operators that reach outside.

        Raises:
            FormatError: the graph is damaged.
        """
        _note_operators(read_graph_def(path), notes)


def _note_operators(outline: TensorFlowOutline, notes: AuditNotes) -> None:
    for name in outline.reaching_out:
        notes.add(Risk.REACHES_OUTSIDE, name, "reaches outside of the model when it runs")


def _is_graph_def(file: Candidate) -> bool:
    nodes = 0
    with file.path.open("rb") as stream:
        try:
            for field in protobuf.fields(stream, 0, file.nbytes):
                if _GRAPH_FIELDS.get(field.number) != field.wire_type:
                    return False
                nodes += field.number == _NODE
                if field.number == _NODE and nodes <= _NODES_TO_LOOK_AT and not _is_node(stream, field):
                    return False
        except protobuf.WireError:
            return False
    return nodes > 0


def _is_node(stream: IO[bytes], whole: protobuf.Field) -> bool:
    parts = list(protobuf.fields(stream, whole.start, whole.end))
    texts = {part.number: part.end - part.start for part in parts if part.wire_type == protobuf.BYTES}
    named = texts.get(_NODE_NAME, 0) > 0 and texts.get(_NODE_OPERATOR, 0) > 0
    return named and all(part.number <= _LAST_NODE_FIELD for part in parts)
