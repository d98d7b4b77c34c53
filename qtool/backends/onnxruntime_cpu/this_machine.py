"""Which preset this machine is."""

from __future__ import annotations

from qtool.backends.onnxruntime_cpu.integer_sums import sums_saturate
from qtool.processor import IntegerFeatures, integer_features

FLEET = "x86"


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
    return "x86-vnni" if features.family == "x86" and features.vnni is not False else FLEET


def runs_here(target: str) -> bool:
    """Tells whether this is a machine that a preset is for.

    Raises:
        RuntimeRefusedError: onnxruntime does not run at all.
    """
    return target == target_here() or (target == FLEET and integer_features().family == "x86")
