"""Gets a float graph ready to be quantized."""

from __future__ import annotations

from importlib import import_module

import onnx_ir as ir

from formats.library_noise import quiet_loggers
from qtool.passes import PREPARE_PASSES


def prepare(model: ir.Model) -> ir.Model:
    """Runs every pass of ``PREPARE_PASSES`` over ``model``, in place, and returns it.

    Raises:
        InputError: the model's opset cannot be raised.
    """
    with quiet_loggers(("onnx_ir", "onnxscript")):  # what they could not improve stays as it was, which is no news
        for location in PREPARE_PASSES.values():
            module, _, name = location.partition(":")
            graph_pass: ir.passes.PassBase = getattr(import_module(module), name)()
            model = graph_pass(model).model
    return model
