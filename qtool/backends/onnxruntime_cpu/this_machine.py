"""The target of this machine, and the choice of a target by name."""

from __future__ import annotations

from dataclasses import dataclass

from qtool.backends.onnxruntime_cpu.integer_sums import sums_saturate
from qtool.backends.onnxruntime_cpu.targets import TARGETS
from qtool.backends.registry import backend_named
from qtool.backends.targets import AUTO, preset
from qtool.processor import IntegerFeatures, integer_features
from qtool.schemes import Scheme

_FLEET = "x86"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedTarget:
    """A preset, and how it relates to this machine.

    Attributes:
        scheme: the preset.
        chosen: whether it was detected as this machine, not named.
        is_here: whether measurements on this machine apply to it.
    """

    scheme: Scheme
    chosen: bool
    is_here: bool

    @property
    def is_measurable(self) -> bool:
        """Whether times measured on this machine decide about it; a model for a fleet is not for this machine alone."""
        return self.is_here and self.scheme.target in TARGETS and self.scheme.target != _FLEET

    @property
    def description(self) -> str:
        """The target in one line, such as ``target x86-avx2: x86 with AVX2 or AVX-512, but no VNNI (this machine)``."""
        here = " (this machine)" if self.chosen else "" if self.is_here else "; times measured here are not from it"
        return f"target {self.scheme.target}: {self.scheme.machine}{here}"


def target_named(name: str | None) -> ResolvedTarget:
    """Returns the target of that name; for ``auto`` or None that of this machine.

    Raises:
        UsageError: there is none of that name.
        RuntimeRefusedError: onnxruntime does not run at all.
    """
    if name is None or name == AUTO:
        return ResolvedTarget(scheme=preset(target_here()), chosen=True, is_here=True)
    scheme = preset(name)
    return ResolvedTarget(scheme=scheme, chosen=False, is_here=_is_here(scheme))


def scheme_here() -> Scheme:
    """Returns the preset's scheme for this machine.

    Raises:
        RuntimeRefusedError: onnxruntime does not run at all.
    """
    return preset(target_here())


def target_here() -> str:
    """Returns the preset for this machine: onnxruntime's behaviour takes precedence over the reported features.

    Raises:
        RuntimeRefusedError: onnxruntime does not run at all.
    """
    return target_of(integer_features(), saturates=sums_saturate())


def target_of(features: IntegerFeatures, *, saturates: bool) -> str:
    """Returns the preset for a processor with ``features``, whose sums saturate at 16 bits or not."""
    if features.family == "arm":
        return "arm64"
    if saturates:
        return "x86-avx2"
    return "x86-vnni" if features.family == "x86" and features.vnni is not False else _FLEET


def _is_here(scheme: Scheme) -> bool:
    if scheme.target not in TARGETS:
        return backend_named(scheme.backend).has_kernels_here
    return scheme.target == target_here() or (scheme.target == _FLEET and _is_x86())


def _is_x86() -> bool:
    return integer_features().family == "x86"
