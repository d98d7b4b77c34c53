"""Writes an ONNX graph whose adapters can be exchanged at run time, and a file for each adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.atomic import check_output
from qtool.errors import UsageError
from qtool.graph.constants import constant_array
from qtool.lora.merge.tensor_merge import WeightedChange, total_delta
from qtool.lora.onnx.graph_inputs import Array, add_inputs, parameters, raise_ir_version
from qtool.lora.onnx.graph_search import GraphSearch
from qtool.lora.onnx.places import Place
from qtool.workflows.lora.request import MergedTarget, MergeRequest

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

ADAPTER_SUFFIX = ".onnx_adapter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchangeable:
    """The content of adapter files.

    Attributes:
        arrays: for each file, its values of the graph's inputs.
        places: for each weight, the initializers that hold it.
    """

    arrays: Mapping[Path, Mapping[str, Array]]
    places: Mapping[str, tuple[Place, ...]]


def single_requests(request: MergeRequest) -> list[MergeRequest]:
    """Returns the request once for each of its adapters."""
    return [replace(request, adapters=(source,)) for source in request.adapters]


def adapter_files(request: MergeRequest, output: Path) -> list[Path]:
    """Returns the files next to ``output``, one per adapter, named after their folders.

    Raises:
        UsageError: two of them would have one name.
        OutputError: one exists already.
    """
    files = [output.with_name(f"{source.path.resolve().name}{ADAPTER_SUFFIX}") for source in request.adapters]
    if len(set(files)) < len(files):
        raise UsageError("two adapters would be written to one file", fix="rename one of their folders")
    for file in files:
        check_output(file, force=request.force)
    return files


def make_exchangeable(
    model: ir.Model, search: GraphSearch, changes: Mapping[Path, Mapping[str, tuple[WeightedChange, ...]]]
) -> Exchangeable:
    """Gives ``model`` inputs for every weight that an adapter changes.

    Args:
        model: the graph, changed in place.
        search: finds weights in it.
        changes: for each file, the changes of its adapter.

    Raises:
        InputError: a weight is not in the graph or cannot be changed at run time, or a change is not plain
            LoRA.
    """
    names = list(dict.fromkeys(name for steps in changes.values() for name in steps))
    places = {name: tuple(search.places(name)) for name in names}
    arrays: dict[Path, dict[str, Array]] = {file: {} for file in changes}
    for name in names:
        for number, place in enumerate(places[name]):
            weight = name if number == 0 else f"{name}.{number}"
            stored = constant_array(place.stored)
            if stored is None:
                raise AssertionError(place)
            for file, steps in changes.items():
                arrays[file] |= parameters(steps.get(name, ()), weight, place, stored.dtype) or {}
    for name in names:
        for number, place in enumerate(places[name]):
            add_inputs(model, name if number == 0 else f"{name}.{number}", place)
    raise_ir_version(model)
    return Exchangeable(arrays=arrays, places=places)


def exchange_facts(
    exchangeable: Exchangeable,
    changes: Mapping[Path, Mapping[str, tuple[WeightedChange, ...]]],
    tensors: Mapping[str, torch.Tensor],
) -> list[MergedTarget]:
    """Describes the weights that can be changed at run time; the change is the largest of all adapters."""
    facts = []
    for name, places in exchangeable.places.items():
        steps = [step for found in changes.values() for step in found.get(name, ())]
        facts.append(
            MergedTarget(
                weight=name,
                kinds=tuple(step.change.kind for step in steps),
                ranks=tuple(step.change.rank for step in steps),
                scales=tuple(step.weight * (step.change.scale or 1.0) for step in steps),
                relative_change=max(_share(tensors[name], (step,)) for step in steps),
                rounding_error=0.0,
                places=tuple(f"{place.stored.name} ({place.form})" for place in places),
            )
        )
    return facts


def _share(weight: torch.Tensor, steps: tuple[WeightedChange, ...]) -> float:
    norm = float(weight.double().norm())
    return float(total_delta(weight, steps).norm()) / norm if norm else 0.0
