"""Prepares a float graph for quantization."""

from __future__ import annotations

from importlib import import_module

import onnx_ir as ir

from qtool.formats.library_noise import quiet_loggers
from qtool.graph.collection_pause import collection_paused
from qtool.graph.maps_aside import put_maps_back, take_maps_aside
from qtool.passes import FOR_INTEGERS_BETWEEN_LAYERS, PREPARE_PASSES


def prepare(model: ir.Model, *, integers_between_layers: bool = True) -> ir.Model:
    """Runs the passes of ``PREPARE_PASSES`` on ``model``, in place, and returns it.

    Args:
        model: the float graph.
        integers_between_layers: whether to run the passes that help only then; see ``Scheme``.

    Raises:
        InputError: the model's opset cannot be raised.
    """
    maps = take_maps_aside(model)
    # They report parts that they could not optimize.
    with collection_paused(len(model.graph)), quiet_loggers(("onnx_ir", "onnxscript")):
        for key, location in PREPARE_PASSES.items():
            if key in FOR_INTEGERS_BETWEEN_LAYERS and not integers_between_layers:
                continue
            module, _, name = location.partition(":")
            graph_pass: ir.passes.PassBase = getattr(import_module(module), name)()
            model = graph_pass(model).model
    put_maps_back(model, maps)
    return model
