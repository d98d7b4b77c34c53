"""The target of this machine, and the choice of a target by name."""

from __future__ import annotations

from dataclasses import dataclass

from qtool.backends.registry import BACKENDS, FALLBACK_BACKEND, backend_named
from qtool.backends.targets import AUTO, preset
from qtool.schemes import Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedTarget:
    """A preset, and how it relates to this machine.

    Attributes:
        scheme: the preset.
        chosen: whether it was detected as this machine, not named.
        is_here: whether measurements on this machine apply to it.
        is_measurable: whether times measured on this machine decide about it; a model for a fleet is not for this
            machine alone.
    """

    scheme: Scheme
    chosen: bool
    is_here: bool
    is_measurable: bool

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
        return ResolvedTarget(scheme=scheme_here(), chosen=True, is_here=True, is_measurable=True)
    scheme = preset(name)
    backend = backend_named(scheme.backend)
    is_here = backend.runs_here(name)
    # Of the kernels of other runtimes no times are known.
    measurable = is_here and scheme.backend == FALLBACK_BACKEND and backend.target_here() in (name, None)
    return ResolvedTarget(scheme=scheme, chosen=False, is_here=is_here, is_measurable=measurable)


def scheme_here() -> Scheme:
    """Returns the scheme of the first preset that is this machine.

    Raises:
        RuntimeRefusedError: onnxruntime does not run at all.
    """
    return preset(next(here for name in BACKENDS if (here := backend_named(name).target_here()) is not None))
