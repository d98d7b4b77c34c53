"""Gets a float graph ready to be quantized."""

from __future__ import annotations

from importlib import import_module

import onnx_ir as ir

from qtool.formats.library_noise import quiet_loggers
from qtool.graph.maps_aside import put_maps_back, take_maps_aside
from qtool.passes import FOR_INTEGERS_BETWEEN_LAYERS, PREPARE_PASSES


def prepare(model: ir.Model, *, integers_between_layers: bool = True) -> ir.Model:
    """Runs the passes of ``PREPARE_PASSES`` over ``model``, in place, and returns it.

    Args:
        model: the float graph.
        integers_between_layers: whether passes run that pay only there; see ``Scheme``.

    Raises:
        InputError: the model's opset cannot be raised.
    """
    maps = take_maps_aside(model)
    with quiet_loggers(("onnx_ir", "onnxscript")):  # what they could not improve stays as it was, which is no news
        for key, location in PREPARE_PASSES.items():
            if key in FOR_INTEGERS_BETWEEN_LAYERS and not integers_between_layers:
                continue
            module, _, name = location.partition(":")
            graph_pass: ir.passes.PassBase = getattr(import_module(module), name)()
            model = graph_pass(model).model
    put_maps_back(model, maps)
    return model
