"""Merges adapters into the weights that they were trained on, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qtool.errors import UsageError
from qtool.formats.detect import detect
from qtool.lora.merge.added_tokens import added_rows, grown
from qtool.lora.merge.base_weights import BaseWeights, open_base
from qtool.lora.merge.tensor_merge import TensorMerge, WeightedChange
from qtool.lora.merge.ties import with_tied_head
from qtool.lora.readers.reading import read_adapter
from qtool.progress import SILENT, Advance, Progress
from qtool.workflows.lora.merge_onnx import merge_into_graph
from qtool.workflows.lora.output import MergedOutput, written_bytes
from qtool.workflows.lora.planned_changes import planned_changes
from qtool.workflows.lora.request import MergedTarget, MergeReport, MergeRequest

if TYPE_CHECKING:
    import torch


def merge_lora(request: MergeRequest, progress: Progress = SILENT) -> MergeReport:
    """Merges ``request.adapters`` and writes the result atomically.

    Raises:
        UsageError: the options conflict, or a pattern matches nothing.
        FormatError: a file is damaged, or needs more than is allowed.
        InputError: an adapter is incomplete, damaged, cannot be merged exactly, or is for another base.
        OutputError: the result cannot be written.
    """
    if request.base.is_file() and detect(request.base).format == "onnx":
        return merge_into_graph(request, progress)
    if request.base_weights is not None:
        raise UsageError("--base-weights has no effect when the base holds its weights by name", fix="drop it")
    if request.as_adapter:
        raise UsageError("--as-adapter makes inputs for an ONNX graph", fix="name an ONNX graph, or drop it")
    if request.data is not None:
        raise UsageError(
            "--calib-data sets the ranges of a quantized ONNX graph, and weights have none",
            fix="name a quantized ONNX graph, or drop it",
        )
    if request.scales is not None:
        raise UsageError("--scales has no effect with float weights", fix="name a quantized ONNX graph, or drop it")
    base = open_base(request.base, request.trust)
    output = None
    if not request.dry_run:
        output = MergedOutput.of(base, request.output, request.output_dir, action=request.action, force=request.force)
    adapters = [read_adapter(source.path) for source in request.adapters]
    rows = added_rows(base.weights.tensors, base.tied, adapters)
    base = base.with_tensors(grown(base.weights.tensors, rows)) if rows else base
    tensors, tied = with_tied_head(base.weights.tensors, base.tied, base.path.with_name("config.json"), adapters)
    planned = planned_changes(request, adapters, tensors, tied, base.path)
    merge = _Merge(base=base, changes=planned.changes, undoes=request.unmerge)
    # Heads that the base stores under the name of its embedding only.
    heads = {name: tensors[name].clone() for name in planned.untied if name not in base.weights.tensors}
    base = base.untied(planned.untied & set(base.tied))
    with _one_thread(request), progress.task("merging", total=len(planned.changes)) as advance:
        if output is None:
            for name in planned.changes:
                for _ in merge(name, tensors[name], advance):
                    pass  # only the figures are needed
        else:
            new = {**planned.new, **heads}
            output.write(
                base,
                lambda name, tensor: merge(name, tensor, advance),
                new,
                untied=bool(planned.untied) or "lm_head.weight" in new,
                rows=rows,
            )
    return MergeReport(
        base=base.path,
        base_kind=base.kind,
        adapters=request.adapters,
        base_models=tuple(adapter.settings.base_model for adapter in adapters),
        output=None if output is None else output.path,
        output_bytes=0 if output is None else written_bytes(output, base),
        targets=(
            *(merge.facts[name] for name in (*base.weights.tensors, *heads) if name in merge.facts),
            *(_brought(name) for name in planned.new),
        ),
        untouched=tuple(name for name in base.weights.tensors if name not in planned.changes),
        unmerged=request.unmerge,
        untied=tuple(sorted(planned.untied)),
    )


@contextmanager
def _one_thread(request: MergeRequest) -> Iterator[None]:
    """Prevents torch from using threads for few rows, which is slower under load from other programs."""
    import torch

    threads = torch.get_num_threads()
    if request.combination is None:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(slots=True, kw_only=True)
class _Merge:
    """Yields the merged rows of each tensor, and records the figures.

    Attributes:
        base: the base.
        changes: the changes of each tensor.
        undoes: whether a merge is undone.
        facts: the figures, by tensor.
    """

    base: BaseWeights
    changes: Mapping[str, tuple[WeightedChange, ...]]
    undoes: bool
    facts: dict[str, MergedTarget] = field(default_factory=dict)

    def __call__(self, name: str, tensor: torch.Tensor, advance: Advance) -> Iterator[torch.Tensor]:
        steps = self.changes.get(name)
        if steps is None:
            yield tensor
            return
        merge = TensorMerge(name, tensor, steps)
        yield from merge.rows()
        self.facts[name] = _facts(name, steps, merge)
        if self.undoes:
            self.facts[name].check_unmerged()
        advance(1)


def _facts(name: str, steps: Sequence[WeightedChange], merge: TensorMerge) -> MergedTarget:
    return MergedTarget(
        weight=name,
        kinds=tuple(step.change.kind for step in steps),
        ranks=tuple(step.change.rank for step in steps),
        scales=tuple(step.weight * (1.0 if step.change.scale is None else step.change.scale) for step in steps),
        relative_change=merge.relative_change,
        rounding_error=merge.rounding_error,
        growth=merge.growth,
    )


def _brought(name: str) -> MergedTarget:
    return MergedTarget(
        weight=name, kinds=("new",), ranks=(None,), scales=(1.0,), relative_change=math.inf, rounding_error=0.0
    )
