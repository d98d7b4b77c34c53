"""Request and report of a merge of adapters."""

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

# Relative to a tensor's norm; rounding to 8-bit integers twice stays below it.
LARGEST_UNMERGE_ERROR = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSource:
    """An adapter and its weight.

    Attributes:
        path: the file or folder.
        weight: the factor of its changes.
    """

    path: Path
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRequest:
    """The options of a merge.

    Attributes:
        base: the weights (a file, an index of several, or the folder of a model), or an ONNX graph.
        adapters: at least one.
        output: where the result goes; named after the base where None.
        output_dir: the folder of a result without ``output``.
        base_weights: the checkpoint that a graph was exported from, to find its weights by their values.
        scale: a factor for the changes of all adapters.
        unmerge: whether to subtract a merge.
        as_adapter: whether to add inputs for the adapters to a graph instead, and write a file for each.
        combination: how changes are combined; None for their sum.
        scales: of a quantized graph: the policy for scales; None for growing them where needed.
        data: of a statically quantized graph: real inputs to widen activation ranges that are exceeded.
        parts: of adapters for pipelines: the ones that are merged, such as ``"unet"``; empty for all.
        only: patterns for the modules that change; empty for all.
        exclude: patterns for modules that do not.
        dry_run: whether to measure everything and write nothing.
        trust: which code the base's files may run.
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
        """The suffix of results without a name."""
        if self.as_adapter:
            return "exchangeable"
        return "unmerged" if self.unmerge else "merged"


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedTarget:
    """The change of one tensor.

    Attributes:
        weight: its name in the base.
        kinds: the kinds of its changes, one per adapter.
        ranks: their ranks; None for kinds without.
        scales: their factors, the weight of the adapter included.
        relative_change: the norm of the change relative to that of the original.
        rounding_error: the norm of the rounding error relative to that of the exact sum.
        growth: the norm of the sum relative to that of the original.
        places: of a graph: the initializers that hold it, each with its form.
        integers: the change of its integers, where a graph stores integers.
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
        """The error of the tensor after undoing a merge, relative to its norm.

        Both roundings count: this one, and that of the merge, which has about the same relative error. From the floats
        of a checkpoint there is only one.
        """
        if self.integers is not None and self.integers.from_floats:
            return self.rounding_error
        return self.rounding_error * (1 + 1 / self.growth) if self.growth else math.inf

    def check_unmerged(self) -> None:
        """Passes when the base is accurate enough after undoing a merge.

        Raises:
            InputError: the merge's rounding was too large.
        """
        if self.integers is not None and self.integers.from_floats:
            return
        if self.unmerge_error > LARGEST_UNMERGE_ERROR:
            raise InputError(
                f"{self.weight} would be {self.unmerge_error:.0%} rounding: the merge left too little of the base",
                fix="keep the base, or --exclude that module",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class WiderRange:
    """An activation range that values exceed.

    Attributes:
        tensor: the activation; of several with one scale, the one that grew most.
        before: the old range.
        after: the new range.
    """

    tensor: str
    before: Range
    after: Range

    @property
    def growth(self) -> float:
        """The growth of the range."""
        return growth(self.before, self.after)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """The result of a merge.

    Attributes:
        base: the base's file.
        base_kind: its kind, in words.
        adapters: the merged adapters.
        base_models: the base model that each adapter declares.
        output: the result; None for a dry run.
        output_bytes: its size, all of its files.
        targets: the tensors that changed, in the base's order.
        untouched: the tensors that did not.
        unmerged: whether adapters were subtracted.
        untied: tensors that are no longer tied.
        ranges: the activation ranges that were widened.
        adapter_files: the adapter files for onnxruntime, with ``as_adapter``.
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
