"""Leaves large weights in their files until they are used."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

# Smaller tensors are read into memory where larger ones stay in their file.
_SMALLEST_LEFT_IN_FILE_BYTES = 1 << 20


def load_small_weights(model: ir.Model) -> ir.Model:
    """Reads external data into memory but for large float32 tensors, which stay in their file; returns ``model``."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                if tensor.dtype != ir.DataType.FLOAT or tensor.nbytes < _SMALLEST_LEFT_IN_FILE_BYTES:
                    value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)
                tensor.release()
    return model
