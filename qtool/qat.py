"""Quantization-aware training in a training loop of one's own.

from qtool import qat

module = qat.prepare(float_module, batch)
train(module)  # any loop: module(batch) has gradients, module.parameters() goes into any optimizer
qat.export(module, "model.int8.onnx", example=batch)
"""

from __future__ import annotations

from qtool.workflows.learn.fake_quantized_module import FakeQuantizedModule, export, prepare

__all__ = ["FakeQuantizedModule", "export", "prepare"]
