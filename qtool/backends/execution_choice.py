"""Chooses how graphs run on this machine, by their scheme or target."""

from __future__ import annotations

from pathlib import Path

from qtool.backends.execution import AS_IT_IS, NODE_BY_NODE, TARGET_KEY, Execution
from qtool.backends.registry import backend_named
from qtool.backends.targets import PRESETS
from qtool.formats.onnx.onnx_outline import read_outline
from qtool.schemes import AnyScheme


def execution_for(scheme: AnyScheme) -> Execution:
    """Returns how graphs quantized by ``scheme`` are run to evaluate them.

    Raises:
        RuntimeRefusedError: onnxruntime does not run at all.
    """
    return backend_named(scheme.backend).execution(scheme)


def timing_of(scheme: AnyScheme) -> Execution | None:
    """Returns how graphs quantized by ``scheme`` are run to time them: in the form in which they are written.

    None where their runtime is not here, or does not stand for that of the target machine.
    """
    backend = backend_named(scheme.backend)
    execution = backend.execution(scheme)
    return execution.as_written() if backend.has_kernels_here and execution != NODE_BY_NODE else None


def execution_of(target: str | None) -> Execution:
    """Returns how a graph for ``target`` is run."""
    scheme = None if target is None else PRESETS.get(target)
    return AS_IT_IS if scheme is None else backend_named(scheme.backend).execution(None)


def execution_of_file(path: Path) -> Execution:
    """Returns the same for the target recorded in the model at ``path``."""
    return execution_of(target_of_file(path))


def target_of_file(path: Path) -> str | None:
    """Returns the target that the model at ``path`` was quantized for; None where it does not say."""
    return {entry.key: entry.value for entry in read_outline(path).metadata_props}.get(TARGET_KEY)
