"""Request and report of a dynamic quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qtool.backends.this_machine import scheme_here
from qtool.plan import DynamicPlan
from qtool.schemes import DynamicScheme, as_dynamic
from qtool.workflows.quantize.shared_request import SharedReport, SharedRequest
from qtool.workflows.tune.dynamic_search import DynamicAttempt


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicRequest(SharedRequest):
    """The options of a dynamic quantization; without data, the result runs on random inputs.

    Attributes:
        scheme: which integers weights become; without one, those that this machine runs fastest.
    """

    scheme: DynamicScheme = field(default_factory=lambda: as_dynamic(scheme_here()))


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicReport(SharedReport):
    """The result of a dynamic quantization.

    Attributes:
        plan: the quantized nodes, and the others with reasons.
        dead_channels: by weight, the channels that are all zero.
        in_blocks: layers whose activations have a scale for each block of a row.
        smoothed: tensors whose outlier channels were moved into weights.
        attempts: the forms that were evaluated, in order.
        search_ended: why the search for the form ended early, in words; None where it did not.
    """

    plan: DynamicPlan
    dead_channels: Mapping[str, tuple[int, ...]]
    in_blocks: tuple[str, ...] = ()
    smoothed: tuple[str, ...] = ()
    attempts: tuple[DynamicAttempt, ...] = ()
    search_ended: str | None = None
