"""Detects TensorFlow's kinds of model files by their content."""

from __future__ import annotations

import mmap
import zipfile
from pathlib import Path
from typing import IO

from qtool.formats import protobuf

SAVED_MODEL = "saved_model"
GRAPH_DEF = "graph_def"
KERAS = "keras"
KERAS_H5 = "keras_h5"
KERAS_WEIGHTS = "keras_weights"
TENSORFLOW_FORMATS = frozenset({SAVED_MODEL, GRAPH_DEF, KERAS, KERAS_H5, KERAS_WEIGHTS})

SAVED_MODEL_FILE = "saved_model.pb"
KERAS_MEMBERS = frozenset({"config.json", "model.weights.h5"})
HDF5_HEAD = b"\x89HDF\r\n\x1a\n"

# Fields of GraphDef, graph.proto: node, library, version and versions; and of NodeDef, node_def.proto: name, operator.
_GRAPH_FIELDS = {1: protobuf.BYTES, 2: protobuf.BYTES, 3: protobuf.VARINT, 4: protobuf.BYTES, 5: protobuf.BYTES}
_NODE, _NODE_NAME, _NODE_OPERATOR, _LAST_NODE_FIELD = 1, 1, 2, 8
_NODES_TO_LOOK_AT = 20


def is_saved_model(path: Path) -> bool:
    """Returns whether ``path`` is a folder with a SavedModel in it."""
    return path.is_dir() and (path / SAVED_MODEL_FILE).is_file()


def is_keras(path: Path) -> bool:
    """Returns whether a zip file has the members that Keras writes; a damaged one has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist()) >= KERAS_MEMBERS
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return False


def is_graph_def(path: Path, size: int) -> bool:
    """Returns whether the bytes are a GraphDef with nodes; one that is truncated is none."""
    nodes = 0
    with path.open("rb") as stream:
        try:
            for field in protobuf.fields(stream, 0, size):
                if _GRAPH_FIELDS.get(field.number) != field.wire_type:
                    return False
                nodes += field.number == _NODE
                if field.number == _NODE and nodes <= _NODES_TO_LOOK_AT and not _is_node(stream, field):
                    return False
        except protobuf.WireError:
            return False
    return nodes > 0


def is_keras_h5(path: Path) -> bool:
    """Returns whether an HDF5 file has the configuration of a Keras model among its attributes."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"model_config") >= 0


def _is_node(stream: IO[bytes], whole: protobuf.Field) -> bool:
    parts = list(protobuf.fields(stream, whole.start, whole.end))
    texts = {part.number: part.end - part.start for part in parts if part.wire_type == protobuf.BYTES}
    named = texts.get(_NODE_NAME, 0) > 0 and texts.get(_NODE_OPERATOR, 0) > 0
    return named and all(part.number <= _LAST_NODE_FIELD for part in parts)
