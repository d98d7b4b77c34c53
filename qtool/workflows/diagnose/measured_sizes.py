"""Measures how large tensors are, by running their graph."""

from __future__ import annotations

import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.errors import RuntimeRefusedError
from qtool.formats.onnx.onnx_file import LARGEST_MESSAGE_BYTES, weights_nbytes
from qtool.formats.torch.example_inputs import InputSpec, make_feeds
from qtool.graph.tensor_sizes import TensorSize, declared_sizes, unknown_tensors
from qtool.progress import Progress
from qtool.runtime.graphs import open_graph, watching


def sizes_of(model: ir.Model, feed: Feed | None, progress: Progress) -> dict[str, TensorSize]:
    """Returns the sizes of the tensors of ``model``, whose shapes are inferred already; it is not modified.

    Args:
        model: the graph.
        feed: the inputs of one run, in which every size is measured; None to measure, on random inputs, only what the
            graph itself does not tell, where the shapes of its inputs are known.
        progress: receives a remark where that does not run.

    Raises:
        RuntimeRefusedError: onnxruntime does not run the graph on ``feed``.
    """
    declared = declared_sizes(model)
    if feed is not None:
        return declared | _measured(model, _computed(model), feed)
    unknown = unknown_tensors(model, declared)
    specs = _static_inputs(model)
    if not unknown or specs is None or weights_nbytes(model) > LARGEST_MESSAGE_BYTES:
        return declared
    try:
        return declared | _measured(model, unknown, make_feeds(specs, {}, None))
    except RuntimeRefusedError as error:
        progress.note(f"{len(unknown)} tensors are of unknown size, and random inputs do not run: {error.problem}")
        return declared


def _measured(model: ir.Model, tensors: tuple[str, ...], feed: Feed) -> dict[str, TensorSize]:
    with watching(model, tensors) as watched, open_graph(watched, threads=1, level="none") as session:
        arrays = session.run(feed)
    # A sequence of tensors is a list, which has no size of its own.
    sizes = {
        name: TensorSize(ir.DataType.from_numpy(array.dtype), tuple(array.shape))
        for name, array in arrays.items()
        if hasattr(array, "dtype") and array.dtype.kind != "O"
    }
    return sizes | {
        name: TensorSize(ir.DataType.from_numpy(array.dtype), tuple(array.shape)) for name, array in feed.items()
    }


def _computed(model: ir.Model) -> tuple[str, ...]:
    return unknown_tensors(model, {})


def _static_inputs(model: ir.Model) -> list[InputSpec] | None:
    sizes = declared_sizes(model)
    values = [value for value in model.graph.inputs if not value.is_initializer()]
    if any(value.name not in sizes for value in values):
        return None
    return [
        InputSpec(name=name, dims=sizes[name].shape, dtype=sizes[name].dtype.numpy())
        for name in (value.name or "" for value in values)
    ]
