"""Finds the layers of a quantized model whose sums can saturate on this processor, and warns of them."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.backends.execution import NODE_BY_NODE, TARGET_KEY
from qtool.backends.execution_choice import execution_of
from qtool.backends.onnxruntime_cpu.coverage import integer_coverage
from qtool.backends.onnxruntime_cpu.integer_sums import sums_saturate
from qtool.backends.onnxruntime_cpu.saturation_proof import LayerProof, is_integer_operator, prove
from qtool.backends.runtimes import DEFAULT_RUNTIME, runtime_named
from qtool.backends.targets import preset
from qtool.formats.detect import detect
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.progress import Progress

OVERFLOW_FIX = (
    "quantize the float model for this processor with --target auto, or for every x86 with --target x86; "
    "a processor with VNNI computes this one correctly"
)
_MOST_NAMES = 3


def overflowing_layers(model: ir.Model) -> tuple[str, ...]:
    """Returns the layers that run on integers and can overflow here, by name; none where sums have 32 bits.

    A model for another machine is judged by other kernels than this one's. Nodes without a name of their own get one,
    and constants become initializers.

    Raises:
        RuntimeRefusedError: onnxruntime does not load the model.
    """
    if not sums_saturate() or execution_of(model.metadata_props.get(TARGET_KEY)) == NODE_BY_NODE:
        return ()
    common.NameFixPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    found = [layer for layer in prove(model, preset("x86-avx2")).layers if not layer.safe]
    if all(is_integer_operator(layer.operator) for layer in found):
        return tuple(layer.node for layer in found)
    # A layer between Q and DQ can have turned out to run in float.
    running = {node.node for node in integer_coverage(model).nodes if node.kernel is not None}
    return tuple(layer.node for layer in found if is_integer_operator(layer.operator) or layer.node in running)


def layers_beyond_16_bits(model: ir.Model) -> tuple[str, ...]:
    """Returns the layers of a model, which is not modified, whose sums 16 bits may not hold, whatever runs them."""
    return tuple(layer.node for layer in _proven(model) if not layer.safe)


def bounds_pairs(model: ir.Model) -> bool:
    """Returns whether a model has stored weights and all of them were rounded to fit 16-bit sums."""
    known = [layer for layer in _proven(model) if layer.highest is not None]
    return bool(known) and all(layer.safe for layer in known)


def _proven(model: ir.Model) -> tuple[LayerProof, ...]:
    copy = model.clone()
    common.NameFixPass()(copy)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    return prove(copy, preset("x86-avx2")).layers


def overflowing_layers_in(path: Path) -> tuple[str, ...]:
    """Returns the same of a file; none where it is not an ONNX graph.

    Raises:
        FormatError: the file cannot be read.
        RuntimeRefusedError: onnxruntime does not load the model.
    """
    if not sums_saturate() or detect(path).format != "onnx":
        return ()
    return overflowing_layers(OnnxFile().read(path))


def warn_of_overflow(path: Path, name: str, progress: Progress, runtime: str = DEFAULT_RUNTIME) -> tuple[str, ...]:
    """Warns of a model that this processor may compute wrongly, and returns the layers that can overflow.

    Raises:
        FormatError: the file cannot be read.
        RuntimeRefusedError: the runtime does not load the model.
    """
    if runtime == DEFAULT_RUNTIME:
        layers = overflowing_layers_in(path)
    else:
        saturates = runtime_named(runtime).sums_saturate()
        layers = layers_beyond_16_bits(OnnxFile().read(path)) if saturates else ()
    if layers:
        progress.warn(f"{overflow_told(name, layers)}\n  {OVERFLOW_FIX}")
    return layers


def overflow_told(name: str, layers: tuple[str, ...]) -> str:
    """Returns one line about the layers of the model ``name`` that can overflow."""
    more = f" and {len(layers) - _MOST_NAMES} more" if len(layers) > _MOST_NAMES else ""
    count = "a layer" if len(layers) == 1 else f"{len(layers)} layers"
    return (
        f"{name}: the integer sums of {count} can overflow on this processor, which adds products in 16 bits: "
        f"{', '.join(layers[:_MOST_NAMES])}{more}"
    )
