"""Exports a torch module with its weights to a graph, and compares it with torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qtool.calib.specs import Feed
from qtool.errors import UsageError
from qtool.formats.base import Weights
from qtool.formats.torch.architecture import Architecture, building
from qtool.formats.torch.example_inputs import Length, first_sizes, make_feeds
from qtool.formats.torch.fitting import fit, rounding
from qtool.progress import Progress
from qtool.workflows.convert.output_dims import SeenShapes
from qtool.workflows.convert.program_check import ProgramComparison, compare_programs
from qtool.workflows.convert.stored_inputs import with_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

# onnxruntime opens larger weights faster from a file than from a message, which is copied several times.
_LARGEST_COPIED_BYTES = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class InputDescription:
    """Collects what is known about a module's inputs.

    Attributes:
        shapes: the shape of each input, with names for free dimensions; None for those of the data.
        dtypes: element types of inputs without data.
        feeds: real data, some samples of each array.
        data_shapes: shapes of the data, with names for what varies.
        lengths: the lengths that free dimensions may have, by input and dimension; any by default.
    """

    shapes: Mapping[str, tuple[int | str, ...]] | None = None
    dtypes: Mapping[str, np.dtype[Any]] | None = None
    feeds: Feed | None = None
    data_shapes: Mapping[str, tuple[int | str, ...]] | None = None
    lengths: Mapping[str, Mapping[str, Length]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedGraph:
    """A graph that computes what its torch module does.

    Attributes:
        model: the graph.
        comparisons: its comparisons with the module.
        left_out: outputs of the module that are not tensors, which the graph does not have.
    """

    model: ir.Model
    comparisons: tuple[ProgramComparison, ...] = ()
    left_out: tuple[str, ...] = ()


def import_weights(
    weights: Weights,
    path: Path,
    *,
    architecture: Architecture | None,
    inputs: InputDescription,
    opset: int | None,
    progress: Progress,
) -> ImportedGraph:
    """Builds the module, loads the weights, exports it and compares the graph with it.

    Args:
        weights: the weights, perhaps with the module that they belong to.
        path: their file, for errors.
        architecture: what builds the module, instead of one that the file holds.
        inputs: its inputs.
        opset: the graph's opset; None for the exporter's choice.
        progress: receives the steps.

    Raises:
        UsageError: there is neither an architecture nor a module.
        FormatError: the code, the weights and the inputs do not fit together, or torch cannot export the module.
        InputError: the graph does not compute the same as the module.
        RuntimeRefusedError: onnxruntime does not load the graph.
    """
    if architecture is None and weights.module is not None:
        if weights.inputs:
            stored = with_shapes(weights.inputs, inputs.shapes)
            inputs = replace(
                inputs,
                shapes={spec.name: spec.dims for spec in stored},
                dtypes={spec.name: spec.dtype for spec in stored},
                lengths={spec.name: spec.lengths for spec in stored},
            )
        remark = rounding(weights.tensors, weights.module.state_dict())
        if remark is not None:
            progress.note(remark)
        return _exported(weights.module, inputs, opset, progress)
    if architecture is None:
        raise UsageError(
            f"{path} holds weights without the module that they belong to ({weights.source})",
            fix="name what builds it: --model pkg.module:factory, file.py:factory, timm:NAME, torchvision:NAME or "
            "transformers:FOLDER",
        )
    with building(architecture) as module:
        remark = fit(module, weights.tensors, factory=architecture.factory)
        if remark is not None:
            progress.note(remark)
        return _exported(module, inputs, opset, progress)


def _exported(module: Any, inputs: InputDescription, opset: int | None, progress: Progress) -> ImportedGraph:
    from qtool.formats.torch import torch_program
    from qtool.formats.torch.torch_calls import looked_through, with_tensors_only
    from qtool.runtime.graphs import open_graph
    from qtool.workflows.convert.opsets import to_opset

    module = looked_through(module)
    bound = torch_program.bind(
        module,
        shapes=inputs.shapes,
        dtypes=inputs.dtypes,
        feeds=inputs.feeds,
        data_shapes=inputs.data_shapes,
        lengths=inputs.lengths,
    )
    specs = [one.spec for one in bound]
    # Images and bare arrays have no name of their own: they are the only input.
    real = None if inputs.feeds is None else {name or specs[0].name: array for name, array in inputs.feeds.items()}
    feeds = make_feeds(specs, first_sizes(specs, real), real)
    # The module's own errors are clearer than those of its export.
    outputs = torch_program.run_named(module, bound, feeds)
    if outputs.left_out:
        progress.note(f"left out non-tensors among the module's outputs: {', '.join(outputs.left_out)}")
        module = with_tensors_only(module)
    with progress.task("exporting with torch"):
        asked = opset if opset in torch_program.EXPORTER_OPSETS else None
        model = torch_program.export(module, bound, feeds, opset=asked, output_names=outputs.names)
    if opset is not None:
        model = to_opset(model, opset)
    shapes = SeenShapes(specs)
    with open_graph(model, largest_message_bytes=_LARGEST_COPIED_BYTES) as session:
        comparisons = compare_programs(
            specs,
            real,
            reference=lambda feed: torch_program.run(module, bound, feed),
            converted=shapes.watched(session.run),
            first_expected=outputs.values,
            progress=progress,
        )
    # The exporter may declare an observed length as fixed, for example after an LSTM.
    shapes.free_wrong_dims(model)
    return ImportedGraph(model=model, comparisons=comparisons, left_out=outputs.left_out)
