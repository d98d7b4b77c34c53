"""What is asked of a merge of adapters, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from qtool.calib.affine import Range
from qtool.errors import InputError
from qtool.formats.trust import NO_TRUST, Trust
from qtool.lora.merge.combining import Combination
from qtool.lora.onnx.activation_ranges import growth
from qtool.lora.onnx.requantizing import Requantized
from qtool.qdq.scale_policy import ScalePolicy
from qtool.workflows.quantize.data_request import DataRequest

# As a share of a tensor's norm; rounding to integers of eight bits, twice, stays below it.
LARGEST_UNMERGE_ERROR = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSource:
    """Names an adapter and how much of it is merged.

    Attributes:
        path: the file or folder.
        weight: the factor of its changes.
    """

    path: Path
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRequest:
    """Says what is to be merged into what.

    Attributes:
        base: the weights (a file, an index of several, or the folder of a model), or an ONNX graph.
        adapters: at least one.
        output: where the result goes; named after the base where None.
        output_dir: the folder of a result without ``output``.
        base_weights: what a graph was exported from, to find its weights by their values.
        scale: a factor for the changes of all adapters.
        unmerge: subtract what a merge added.
        as_adapter: give a graph inputs for the adapters instead, and write a file for each.
        combination: how changes are combined; None for their sum.
        scales: of a graph with integers: what becomes of their scales; None for those that grow where they have to.
        data: of a graph with static ranges of activations: real inputs, which set those again that values outgrow.
        parts: of adapters for pipelines: the ones that are merged, such as ``"unet"``; empty for all.
        only: patterns for the modules that change; empty for all.
        exclude: patterns for modules that do not.
        dry_run: measure everything and write nothing.
        trust: what the base's files may run.
        force: replace a result that exists.
    """

    base: Path
    adapters: tuple[AdapterSource, ...]
    output: Path | None = None
    output_dir: Path | None = None
    base_weights: Path | None = None
    scale: float = 1.0
    unmerge: bool = False
    as_adapter: bool = False
    combination: Combination | None = None
    scales: ScalePolicy | None = None
    data: DataRequest | None = None
    parts: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dry_run: bool = False
    trust: Trust = NO_TRUST
    force: bool = False

    @property
    def action(self) -> str:
        """What results without a name are called."""
        if self.as_adapter:
            return "exchangeable"
        return "unmerged" if self.unmerge else "merged"


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedTarget:
    """Says what happened to one tensor.

    Attributes:
        weight: its name in the base.
        kinds: the kinds of its changes, one an adapter.
        ranks: their ranks; None for kinds without.
        scales: their factors, the weight of the adapter included.
        relative_change: the norm of what was added, over that of the original.
        rounding_error: the norm of what rounding to the base's type cut off, over that of the exact sum.
        growth: the norm of the sum, over that of the original.
        places: of a graph: the initializers that hold it, each with its form.
        integers: what became of them, where a graph stores such.
    """

    weight: str
    kinds: tuple[str, ...]
    ranks: tuple[int | None, ...]
    scales: tuple[float, ...]
    relative_change: float
    rounding_error: float
    growth: float = 1.0
    places: tuple[str, ...] = ()
    integers: Requantized | None = None

    @property
    def unmerge_error(self) -> float:
        """How far the tensor is from the one before the merge that was undone, as a share of its norm.

        Both roundings count: this one, and that of the merge, which cut off as large a share of a tensor of that norm.
        """
        return self.rounding_error * (1 + 1 / self.growth) if self.growth else math.inf

    def check_unmerged(self) -> None:
        """Passes when enough is left of the base after a merge was undone.

        Raises:
            InputError: the merge drowned it in rounding.
        """
        if self.unmerge_error > LARGEST_UNMERGE_ERROR:
            raise InputError(
                f"{self.weight} would be {self.unmerge_error:.0%} rounding: the merge left too little of the base",
                fix="keep the base, or --exclude that module",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class WiderRange:
    """Is a range of activations that values outgrow.

    Attributes:
        tensor: the activation; of several with one scale, the one that grew most.
        before: what its integers stood for.
        after: what they have to stand for.
    """

    tensor: str
    before: Range
    after: Range

    @property
    def growth(self) -> float:
        """How many times as far from zero it reaches."""
        return growth(self.before, self.after)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """Says what was merged.

    Attributes:
        base: the base's file.
        base_kind: what it is, in words.
        adapters: what was merged into it.
        base_models: what each adapter says that it was trained on.
        output: the result; None for a dry run.
        output_bytes: its size, all of its files.
        targets: the tensors that changed, in the base's order.
        untouched: the tensors that did not.
        unmerged: whether adapters were subtracted.
        untied: tensors that were one with another of the base, and no longer are.
        ranges: the ranges of activations that were set again.
        adapter_files: what onnxruntime loads beside a graph whose adapters are exchanged as it runs.
    """

    base: Path
    base_kind: str
    adapters: tuple[AdapterSource, ...]
    base_models: tuple[str | None, ...]
    output: Path | None
    output_bytes: int
    targets: tuple[MergedTarget, ...]
    untouched: tuple[str, ...]
    unmerged: bool = False
    untied: tuple[str, ...] = ()
    ranges: tuple[WiderRange, ...] = ()
    adapter_files: tuple[Path, ...] = ()
