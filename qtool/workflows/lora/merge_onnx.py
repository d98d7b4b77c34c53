"""Merges adapters into ONNX graphs: finds each weight in the graph in its exported form, and changes it there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.atomic import check_output, staged
from qtool.backends.targets import preset
from qtool.errors import InputError, UsageError
from qtool.formats.mapped_tensors import DecodedTensors
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.lora.merge.added_tokens import added_rows, refuse_added_rows
from qtool.lora.merge.base_weights import open_base
from qtool.lora.merge.tensor_merge import WeightedChange, total_delta
from qtool.lora.onnx.graph_merging import (
    Array,
    GraphChange,
    add_to_graph,
    holds_alone,
    merge_rows,
    round_again,
    worst,
)
from qtool.lora.onnx.graph_names import weights_by_name
from qtool.lora.onnx.graph_search import GraphSearch
from qtool.lora.onnx.layer_biases import layers_of
from qtool.lora.onnx.places import Place, never_scaled
from qtool.lora.readers.reading import read_adapter
from qtool.progress import Progress
from qtool.qdq.scale_policy import ScalePolicy
from qtool.qdq.stored_integers import IntegerRules, stored_integers
from qtool.runtime.adapter_file import write_adapter
from qtool.runtime.hollow_graphs import check_loads
from qtool.workflows.convert.model_source import save_graph
from qtool.workflows.diagnose.overflow import bounds_pairs, layers_beyond_16_bits
from qtool.workflows.lora.exchangeable import adapter_files, exchange_facts, make_exchangeable, single_requests
from qtool.workflows.lora.merged_ranges import ActivationRanges
from qtool.workflows.lora.planned_changes import PlannedChanges, planned_changes
from qtool.workflows.lora.request import MergedTarget, MergeReport, MergeRequest

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from qtool.lora.readers.adapter import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checkpoint:
    """The checkpoint that the graph was exported from.

    Attributes:
        tensors: its tensors by name.
        arrays: those of them that hold floats, as the graph may store them.
        tied: for each name of a tied tensor but the first, the first one.
        path: the file.
    """

    tensors: Mapping[str, torch.Tensor]
    arrays: Mapping[str, Array]
    tied: Mapping[str, str]
    path: Path

    def without_ties(self, untied: Collection[str]) -> _Checkpoint:
        """Returns the checkpoint with some tied tensors untied."""
        return replace(self, tied={name: first for name, first in self.tied.items() if name not in untied})


def merge_into_graph(request: MergeRequest, progress: Progress) -> MergeReport:
    """Merges ``request.adapters`` into the graph ``request.base``, and writes the result atomically.

    Raises:
        UsageError: the options conflict, or a pattern matches nothing.
        FormatError: a file is damaged, or needs more than is allowed.
        InputError: an adapter cannot be merged, or one of its weights is not in the graph.
        OutputError: the result cannot be written.
        RuntimeRefusedError: onnxruntime does not load the result.
    """
    if request.as_adapter:
        return _make_exchangeable(request, progress)
    output = None if request.dry_run else _output(request)
    adapters = [read_adapter(source.path) for source in request.adapters]
    model = OnnxFile().read(request.base)
    checkpoint = _checkpoint(request, model)
    planned = _planned(request, adapters, checkpoint, model)
    changes, checkpoint = planned.changes, checkpoint.without_ties(planned.untied)
    beyond = layers_beyond_16_bits(model)
    rules = IntegerRules(
        scales=request.scales or ScalePolicy.GROW,
        fits_blocks=request.scales is None,
        largest_pair=preset("x86").largest_pair if bounds_pairs(model) else None,
    )
    ranges = ActivationRanges(model, request.data, progress, grows=not request.unmerge)
    targets, merged = _merge(request, model, checkpoint, changes, rules, progress)
    _tell_of_overflow([layer for layer in layers_beyond_16_bits(model) if layer not in beyond], progress)
    reset = ranges.after_merge()
    _round_again(model, request, checkpoint, changes, merged, reset.layers, rules)
    nbytes = 0
    if output is not None:
        with staged(output) as path, progress.task(f"writing {output.name}"):
            save_graph(model, path)
            check_loads(path)
            nbytes = sum(file.stat().st_size for file in path.parent.iterdir())
    return MergeReport(
        base=request.base,
        base_kind=f"ONNX, {len(model.graph.initializers)} initializers",
        adapters=request.adapters,
        base_models=tuple(adapter.settings.base_model for adapter in adapters),
        output=output,
        output_bytes=nbytes,
        targets=tuple(targets),
        untouched=tuple(name for name in checkpoint.tensors if name not in changes),
        unmerged=request.unmerge,
        untied=tuple(sorted(planned.untied)),
        ranges=reset.wider,
    )


def _tell_of_overflow(layers: Sequence[str], progress: Progress) -> None:
    if layers:
        count = "a layer" if len(layers) == 1 else f"{len(layers)} layers"
        progress.warn(
            f"the sums of {count} that 16 bits held before the change can overflow now on x86 without VNNI, "
            f"{layers[0]} first\n  merge into the float model and quantize that, to run on such a processor"
        )


def _make_exchangeable(request: MergeRequest, progress: Progress) -> MergeReport:
    output = _output(request)
    files = adapter_files(request, output)
    adapters = [read_adapter(source.path) for source in request.adapters]
    model = OnnxFile().read(request.base)
    checkpoint = _checkpoint(request, model)
    changes = {
        file: _planned(single, [adapter], checkpoint, model).changes
        for file, single, adapter in zip(files, single_requests(request), adapters, strict=True)
    }
    firsts = {
        file: {name: steps for name, steps in found.items() if name not in checkpoint.tied}
        for file, found in changes.items()
    }
    made = make_exchangeable(model, _search(model, checkpoint, request), firsts)
    if request.base_weights is None:
        _check_told(made.places)
    if not request.dry_run:
        with staged(output) as path, progress.task(f"writing {output.name}"):
            save_graph(model, path)
            check_loads(path)
            for file, arrays in made.arrays.items():
                write_adapter(path.with_name(file.name), arrays)
    written = () if request.dry_run else (output, *files)
    return MergeReport(
        base=request.base,
        base_kind=f"ONNX, {len(model.graph.initializers)} initializers",
        adapters=request.adapters,
        base_models=tuple(adapter.settings.base_model for adapter in adapters),
        output=None if request.dry_run else output,
        output_bytes=sum(file.stat().st_size for file in written),
        targets=tuple(exchange_facts(made, firsts, checkpoint.tensors)),
        untouched=tuple(name for name in checkpoint.tensors if checkpoint.tied.get(name, name) not in made.places),
        adapter_files=written[1:],
    )


def _output(request: MergeRequest) -> Path:
    named = (request.output_dir or request.base.parent) / f"{request.base.stem}.{request.action}.onnx"
    output = request.output or named
    if output.exists() and output.samefile(request.base):
        raise UsageError(f"the result would replace the base {output} itself", fix="name another file with -o")
    check_output(output, force=request.force)
    return output


def _checkpoint(request: MergeRequest, model: ir.Model) -> _Checkpoint:
    if request.base_weights is not None:
        base = open_base(request.base_weights, request.trust)
        tensors = base.weights.tensors
        arrays = {name: _as_array(tensor) for name, tensor in tensors.items() if tensor.is_floating_point()}
        return _Checkpoint(tensors=tensors, arrays=arrays, tied=base.tied, path=base.path)
    named = weights_by_name(model)
    if not named:
        raise InputError(
            f"{request.base} does not record the names of its weights",
            fix="give the checkpoint that it was exported from with --base-weights",
        )
    copies = DecodedTensors(tuple(named), lambda name: _as_tensor(named[name]))
    return _Checkpoint(tensors=copies, arrays=named, tied={}, path=request.base)


def _planned(
    request: MergeRequest, adapters: Sequence[Adapter], checkpoint: _Checkpoint, model: ir.Model
) -> PlannedChanges:
    refuse_added_rows(added_rows(checkpoint.tensors, checkpoint.tied, adapters), request.base)
    try:
        planned = planned_changes(request, adapters, checkpoint.tensors, checkpoint.tied, checkpoint.path)
    except InputError as error:
        integers = any(stored_integers(node) for node in model.graph.all_nodes() if node.op_type == "DequantizeLinear")
        if request.base_weights is not None or not integers:
            raise
        raise InputError(
            f"{error.problem}; {request.base} holds integers, which have no names of weights",
            fix="give the checkpoint that it was exported from with --base-weights",
        ) from error
    if planned.new:
        name = next(iter(planned.new))
        raise InputError(
            f"the adapter adds '{name}', which the base does not have, and a graph has no nodes for it",
            fix="merge into the weights and export the model with that layer, or leave it out with --exclude "
            f"{name.rpartition('.')[0]}",
        )
    return planned


def _merge(
    request: MergeRequest,
    model: ir.Model,
    checkpoint: _Checkpoint,
    changes: Mapping[str, Sequence[WeightedChange]],
    rules: IntegerRules,
    progress: Progress,
) -> tuple[list[MergedTarget], Mapping[str, Sequence[Place]]]:
    firsts = [name for name in changes if name not in checkpoint.tied]
    search = _search(model, checkpoint, request)
    # All of them are found before the first one changes, since equal tensors may be stored once.
    places = {name: search.places(name) for name in firsts}
    if checkpoint.path == request.base:
        _check_told(places)
    if request.scales is not None and not any(place.dequantize for found in places.values() for place in found):
        raise UsageError("--scales has no effect, since no integers change", fix="drop it")
    targets = []
    with progress.task("merging", total=len(firsts)) as advance:
        for name in firsts:
            tensor = checkpoint.tensors[name]
            if checkpoint.path == request.base and all(holds_alone(place, tensor) for place in places[name]):
                found = [merge_rows(place, tensor, changes[name], name) for place in places[name]]
            else:
                delta = total_delta(tensor, changes[name]).numpy()
                weight = tensor.double().numpy() + delta
                found = [add_to_graph(place, delta, name, rules, weight=weight) for place in places[name]]
            targets.append(_facts(name, changes[name], found))
            if request.unmerge:
                targets[-1].check_unmerged()
            advance(1)
    return targets, places


def _round_again(
    model: ir.Model,
    request: MergeRequest,
    checkpoint: _Checkpoint,
    changes: Mapping[str, Sequence[WeightedChange]],
    merged: Mapping[str, Sequence[Place]],
    layers: Collection[ir.Node],
    rules: IntegerRules,
) -> None:
    """Rounds the integers of layers again whose inputs grow much, since other inputs matter then."""
    if not layers:
        return
    search = _search(model, checkpoint, request)
    for name, tensor in checkpoint.tensors.items():
        if name in checkpoint.tied or tensor.ndim < 2 or not tensor.is_floating_point():
            continue
        try:
            places = merged[name] if name in merged else search.places(name)
        except InputError:  # it is not there, or not alone: its integers do not change
            continue
        mine = [place for place in places if any(layer in layers for layer in layers_of(place.stored, place.nodes))]
        if mine:
            steps = changes.get(name, ())
            weight = tensor.double() + (total_delta(tensor, steps) if steps else 0.0)
            for place in mine:
                round_again(place, weight.numpy(), rules)


def _search(model: ir.Model, checkpoint: _Checkpoint, request: MergeRequest) -> GraphSearch:
    return GraphSearch(model, checkpoint.arrays, checkpoint.tied, named=request.base_weights is not None)


def _check_told(places: Mapping[str, Sequence[Place]]) -> None:
    """Passes when names are enough to know that the graph's values are those of torch.

    Raises:
        InputError: a weight belongs to an operator into which exporters fold normalizations.
    """
    for name, found in places.items():
        readers = [layer for place in found for layer in _readers(place)]
        scaled = sorted({layer.op_type for layer in readers if not never_scaled(layer)})
        if scaled:
            raise InputError(
                f"'{name}' is read by {', '.join(scaled)}, into whose weights exporters may fold normalizations",
                fix="give the checkpoint that the graph was exported from with --base-weights",
            )


def _readers(place: Place) -> list[ir.Node]:
    if place.dequantize is not None:
        return list(layers_of(place.stored, place.nodes))
    return [use.node for use in place.stored.uses()]


def _as_tensor(array: Array) -> torch.Tensor:
    import torch

    return torch.from_numpy(array.copy())


def _as_array(tensor: torch.Tensor) -> Array:
    import torch

    wide = tensor.to(torch.float32) if tensor.dtype == torch.bfloat16 else tensor
    array: Array = wide.detach().numpy()
    return array


def _facts(name: str, steps: Sequence[WeightedChange], found: Sequence[GraphChange]) -> MergedTarget:
    degraded = worst(found)
    return MergedTarget(
        weight=name,
        kinds=tuple(step.change.kind for step in steps),
        ranks=tuple(step.change.rank for step in steps),
        scales=tuple(step.weight * (1.0 if step.change.scale is None else step.change.scale) for step in steps),
        relative_change=degraded.relative_change,
        rounding_error=degraded.rounding_error,
        growth=degraded.growth,
        places=tuple(f"{change.stored} ({change.form})" for change in found),
        integers=degraded.integers,
    )
