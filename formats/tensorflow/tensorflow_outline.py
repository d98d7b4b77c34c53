"""Describes what is in TensorFlow models, without TensorFlow: operators, signatures, shapes of weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from qtool.formats import protobuf
from qtool.formats.errors import FormatError
from qtool.formats.tensorflow.tensorflow_kinds import SAVED_MODEL_FILE
from qtool.formats.tensorflow.tensorflow_messages import (
    Endpoint,
    Graph,
    Node,
    Signature,
    children,
    read_graph,
    read_signature,
    text,
)

DEFAULT_SIGNATURE = "serving_default"

_ITEM_BYTES = {
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
    **{f"{kind}{bits}": bits // 8 for kind in ("int", "uint", "float", "bfloat") for bits in (8, 16, 32, 64)},
}
# Operators that reach outside of the model: files, and Python code of the process.
_REACHING_OUT = frozenset(
    {"ReadFile", "WriteFile", "MatchingFiles", "ImmutableConst", "PyFunc", "PyFuncStateless", "EagerPyFunc"}
)
_NO_OUTPUTS = frozenset({"NoOp", "Assert", "Const", "Placeholder", "PlaceholderWithDefault"})
# Operators for images; channels come last by default.
_LAYOUT_OPERATORS = frozenset(
    {"Conv2D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "MaxPool", "AvgPool", "FusedBatchNormV3"}
)
_DEFAULT_LAYOUT = "NHWC"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Describes weights: a constant of the graph or a variable.

    Attributes:
        name: its name.
        dtype: its element type.
        dims: its shape.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """How many bytes they take; texts count as none."""
        return self.elements * _ITEM_BYTES.get(self.dtype, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFlowOutline:
    """Describes the part of a model that its outputs need.

    Attributes:
        version: the TensorFlow that wrote it; empty where it does not say.
        operators: how many nodes there are of each type, called functions included, the most frequent first.
        signatures: what can be called, by name; a frozen graph has one that was guessed.
        tensors: its weights.
        layout: ``NHWC`` or ``NCHW`` where layers for images say so; None without such layers.
        reaching_out: operators anywhere in the file that read or write files or call Python.
        nodes: the names of all nodes of the graph itself.
    """

    version: str
    operators: Mapping[str, int]
    signatures: Mapping[str, Signature]
    tensors: tuple[StoredTensor, ...]
    layout: str | None
    reaching_out: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def signature(self) -> str:
        """The name of the signature to call: the usual one, or the first one.

        Raises:
            FormatError: there is none.
        """
        if DEFAULT_SIGNATURE in self.signatures:
            return DEFAULT_SIGNATURE
        if not self.signatures:
            raise FormatError(
                "the SavedModel has no signature that declares its inputs and outputs",
                fix="save it with one: model.export(folder), or tf.saved_model.save(model, folder, signatures=…)",
            )
        return min(self.signatures)


def read_graph_def(path: Path) -> TensorFlowOutline:
    """Describes a frozen graph; its inputs are its placeholders, its outputs what nothing else reads.

    Raises:
        FormatError: the file is damaged.
    """
    with _reading(path) as stream:
        graph = read_graph(stream, 0, path.stat().st_size)
    read = {_made_by(name) for node in graph.nodes for name in node.inputs if not name.startswith("^")}
    inputs = (node for node in graph.nodes if node.kind == "Placeholder")
    outputs = (node for node in graph.nodes if node.name not in read and node.kind not in _NO_OUTPUTS)
    signature = Signature(inputs=tuple(map(_endpoint, inputs)), outputs=tuple(map(_endpoint, outputs)))
    return _outline(graph, {DEFAULT_SIGNATURE: signature}, version="")


def read_saved_model(folder: Path) -> TensorFlowOutline:
    """Describes the serving graph of a SavedModel folder.

    Raises:
        FormatError: the file is damaged, or holds no graph.
    """
    path = folder / SAVED_MODEL_FILE
    with _reading(path) as stream:
        # SavedModel: meta_graphs = 2; MetaGraphDef: meta_info_def = 1, graph_def = 2, signature_def = 5.
        metas = children(stream, 0, path.stat().st_size).get(2, [])
        graphs = [parts for meta in metas if 2 in (parts := children(stream, meta.start, meta.end))]
        if not graphs:
            raise FormatError(f"{path} holds no graph", fix="save the model again: model.export(folder)")
        chosen = next((parts for parts in graphs if "serve" in _info(stream, parts, 4)), graphs[0])
        signatures = dict(read_signature(stream, entry) for entry in chosen.get(5, []))
        # Names with underscores, such as the operation that fills tables, are nothing to call.
        called = {name: value for name, value in signatures.items() if not name.startswith("__")}
        version = " ".join(_info(stream, chosen, 5))
        return _outline(read_graph(stream, chosen[2][0].start, chosen[2][0].end), called, version=version)


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as stream:
            yield stream
    except protobuf.WireError as error:
        raise FormatError(f"{path} is a damaged TensorFlow model", fix="save or download it again") from error


def _info(stream: IO[bytes], meta: Mapping[int, list[protobuf.Field]], number: int) -> list[str]:
    """Reads texts of a MetaInfoDef: tags = 4, tensorflow_version = 5."""
    return [
        text(stream, one) for info in meta.get(1, []) for one in children(stream, info.start, info.end).get(number, [])
    ]


def _outline(graph: Graph, signatures: Mapping[str, Signature], *, version: str) -> TensorFlowOutline:
    called = signatures.get(DEFAULT_SIGNATURE) or signatures.get(min(signatures, default=""))
    ends = [] if called is None else [end.tensor for end in called.outputs]
    needed = list(_needed(graph, ends)) if ends else graph.nodes
    counts = Counter(node.kind for node in needed)
    stored = [
        StoredTensor(name=node.name, dtype=node.dtype, dims=tuple(dim or 0 for dim in node.dims))
        for node in needed
        if node.kind in ("Const", "VarHandleOp", "VariableV2") and node.dims is not None
    ]
    layouts = (node.data_format or _DEFAULT_LAYOUT for node in needed if node.kind in _LAYOUT_OPERATORS)
    everywhere = {node.kind for nodes in (graph.nodes, *graph.functions.values()) for node in nodes}
    return TensorFlowOutline(
        version=version,
        operators=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        signatures=signatures,
        tensors=tuple(stored),
        layout=next(layouts, None),
        reaching_out=tuple(sorted(_REACHING_OUT & everywhere)),
        nodes=tuple(node.name for node in graph.nodes),
    )


def _needed(graph: Graph, ends: Iterable[str]) -> Iterator[Node]:
    """Yields every node that the nodes called ``ends`` depend on, and once those of every function called there."""
    by_name = {node.name: node for node in graph.nodes}
    seen: set[str] = set()
    called: set[str] = set()
    waiting = list(ends)
    while waiting:
        name = waiting.pop()
        if name in seen or name not in by_name:
            continue
        seen.add(name)
        node = by_name[name]
        yield node
        waiting += map(_made_by, node.inputs)
        yield from _called(graph, node, called)


def _called(graph: Graph, node: Node, seen: set[str]) -> Iterator[Node]:
    waiting = list(node.functions)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for inner in graph.functions.get(name, []):
            yield inner
            waiting += inner.functions


def _endpoint(node: Node) -> Endpoint:
    return Endpoint(name=node.name, tensor=node.name, dtype=node.dtype, dims=node.dims)


def _made_by(name: str) -> str:
    return name.removeprefix("^").partition(":")[0]
