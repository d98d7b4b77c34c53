"""Opens graphs that are not files yet."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from qtool.runtime.session import Level, Session

# A protobuf message holds at most 2 GiB; some room is left for everything that is not weights.
_LARGEST_MESSAGE_BYTES = 1_800_000_000
# Tensors that are held while they are written.
_LARGEST_WRITTEN_AT_ONCE_BYTES = 256 << 20


@contextmanager
def open_graph(
    model: ir.Model,
    *,
    threads: int = 0,
    level: Level = "all",
    mapped: bool = False,
    largest_message_bytes: int = _LARGEST_MESSAGE_BYTES,
) -> Iterator[Session]:
    """Yields a session on ``model``; goes through a temporary file where the model is too large for one message.

    Args:
        model: the graph.
        threads: threads inside an operator; 0 lets onnxruntime take one a core.
        level: how far onnxruntime may rewrite the graph; not at all where it is ``mapped``.
        mapped: whether it goes through a file in any case, and its weights stay there while it runs.
        largest_message_bytes: with so many bytes of weights it goes through a file.

    Raises:
        RuntimeRefusedError: onnxruntime does not load the model.
    """
    largest = 0 if mapped else largest_message_bytes
    # Windows deletes no file that a session still reads.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        saved(model, Path(folder), largest) as source,
    ):
        yield Session(source, threads=threads, level=level, mapped=mapped)


@contextmanager
def saved(model: ir.Model, folder: Path, largest_message_bytes: int = _LARGEST_MESSAGE_BYTES) -> Iterator[Path | bytes]:
    """Yields ``model`` in the form a session takes: as bytes, or where it is too large for that, as a file."""
    constants = (value.const_value for value in model.graph.initializers.values())
    if sum(tensor.nbytes for tensor in constants if tensor is not None) < largest_message_bytes:
        yield ir.to_proto(model).SerializeToString()
        return
    path = folder / "model.onnx"
    ir.save(model, path, external_data="model.onnx.data", max_in_flight_bytes=_LARGEST_WRITTEN_AT_ONCE_BYTES)
    yield path


@contextmanager
def watching(model: ir.Model, tensors: Sequence[str]) -> Iterator[ir.Model]:
    """Yields ``model`` with exactly ``tensors`` as its outputs, and gives it its own outputs back at the end."""
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    outputs = list(model.graph.outputs)
    model.graph.outputs[:] = [values[name] for name in tensors]
    try:
        yield model
    finally:
        model.graph.outputs[:] = outputs
