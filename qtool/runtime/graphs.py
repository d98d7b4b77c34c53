"""Opens graphs in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import onnx_ir as ir

from qtool.calib.specs import Array
from qtool.private_folder import private_folder
from qtool.runtime.long_graphs import is_long
from qtool.runtime.session import Level, Session
from qtool.runtime.session_chain import SessionChain
from qtool.runtime.shared_initializers import may_be_handed_over, place_holder, read_in_place, ready
from qtool.runtime.steady_draws import with_steady_draws

# A protobuf message holds at most 2 GiB; some room is left for everything that is not weights.
_LARGEST_MESSAGE_BYTES = 1_800_000_000
# Weights of at least this size are shared in memory: serializing them takes longer than many runs.
_SMALLEST_HANDED_OVER_BYTES = 4096
# Tensors that are held while they are written.
_LARGEST_WRITTEN_AT_ONCE_BYTES = 256 << 20


@contextmanager
def open_graph(
    model: ir.Model,
    *,
    threads: int = 0,
    level: Level = "all",
    mapped: bool = False,
    prepacks: bool = True,
    largest_message_bytes: int = _LARGEST_MESSAGE_BYTES,
) -> Iterator[Session]:
    """Yields a session on ``model``, which reads its weights without copying them.

    It goes through a temporary file where the model is too large for one message, and is a chain of sessions where it
    has very many nodes. Nodes that draw random numbers draw the same ones in every session and run.

    Args:
        model: the graph.
        threads: threads inside an operator; 0 lets onnxruntime take one per core.
        level: how far onnxruntime may rewrite the graph; not at all where it is ``mapped``.
        mapped: whether it always goes through a file, from which weights are memory-mapped while it runs.
        prepacks: whether products get copies of their weights, with which they are faster, where it is not ``mapped``.
        largest_message_bytes: the bytes of weights above which it goes through a file.

    Raises:
        RuntimeRefusedError: onnxruntime does not load the model.
    """
    model = with_steady_draws(model)
    if not mapped and is_long(model):
        with ExitStack() as stack:
            yield SessionChain(
                model,
                lambda part: stack.enter_context(open_graph(part, threads=threads, level=level, prepacks=prepacks)),
            )
        return
    if not mapped and _weights_bytes(model) < largest_message_bytes:
        message, weights = apart(model)
        values = model.graph.initializers
        in_place = [name for name in weights if read_in_place(values[name])]
        yield Session(message, threads=threads, level=level, weights=weights, in_place=in_place, prepacks=prepacks)
        return
    with private_folder() as folder, saved(model, folder, 0) as source:
        yield Session(source, threads=threads, level=level, mapped=mapped, prepacks=prepacks and not mapped)


@contextmanager
def saved(model: ir.Model, folder: Path, largest_message_bytes: int = _LARGEST_MESSAGE_BYTES) -> Iterator[Path | bytes]:
    """Yields ``model`` in the form a session takes: as bytes, or as a file where it is too large."""
    if _weights_bytes(model) < largest_message_bytes:
        yield ir.to_proto(model).SerializeToString()
        return
    path = folder / "model.onnx"
    # A part of a graph is a view of it, which cannot be saved with its weights apart.
    model = model.clone()
    ir.save(model, path, external_data="model.onnx.data", max_in_flight_bytes=_LARGEST_WRITTEN_AT_ONCE_BYTES)
    yield path


def _weights_bytes(model: ir.Model) -> int:
    constants = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in constants if tensor is not None)


def apart(model: ir.Model) -> tuple[bytes, dict[str, Array]]:
    """Returns ``model``, which is not modified, as bytes without its large weights, and these by name."""
    large = {
        name: (value, value.const_value)
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and may_be_handed_over(value.const_value, smallest_bytes=_SMALLEST_HANDED_OVER_BYTES)
        # onnxruntime drops unused initializers, and then reports them as missing.
        and (value.uses() or value.is_graph_output())
    }
    weights = {name: ready(tensor, keeps=True) for name, (_, tensor) in large.items()}
    try:
        for name, (value, tensor) in large.items():
            value.const_value = place_holder(tensor, name)
        return ir.to_proto(model).SerializeToString(), weights
    finally:
        for value, tensor in large.values():
            value.const_value = tensor


@contextmanager
def watching(model: ir.Model, tensors: Sequence[str]) -> Iterator[ir.Model]:
    """Yields ``model`` with exactly ``tensors`` as its outputs, and restores its own outputs at the end."""
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    outputs = list(model.graph.outputs)
    model.graph.outputs[:] = [values[name] for name in tensors]
    try:
        yield model
    finally:
        model.graph.outputs[:] = outputs
