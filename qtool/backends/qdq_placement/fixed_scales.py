"""Outputs whose scale and zero point in 16 bits are fixed by the operator that computes them.

QNN takes Sigmoid and Tanh with 16 bits under these parameters only, as onnxruntime's own configuration sets them
(onnxruntime/quantization/execution_providers/qnn/quant_config.py, ``_process_sigmoid`` and ``_process_tanh``). They
cover what the operators return, from 0 to 1 and from -1 to 1, up to one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.calib.affine import AffineParams
from qtool.plan import Plan

# Scale and zero point by operator and signedness.
FIXED: Mapping[tuple[str, bool], tuple[float, int]] = {
    ("Sigmoid", False): (1.0 / 65536.0, 0),
    ("Sigmoid", True): (1.0 / 32768.0, 0),
    ("Tanh", False): (1.0 / 32768.0, 32768),
    ("Tanh", True): (1.0 / 32768.0, 0),
}
_BITS = 16


def with_fixed_scales(model: ir.Model, plan: Plan, params: Mapping[str, AffineParams]) -> dict[str, AffineParams]:
    """Returns ``params`` with those of Sigmoid and Tanh where they are of 16 bits."""
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    found = dict(params)
    for name, given in params.items():
        producer = values[name].producer() if name in values and given.grid.bits == _BITS else None
        fixed = None if producer is None else FIXED.get((producer.op_type, given.grid.signed))
        if fixed is not None and name in {activation.source for activation in plan.activations.values()}:
            scale, zero = fixed
            point = np.asarray(zero, given.zero_point.dtype)
            found[name] = replace(given, scale=np.asarray(scale, np.float32), zero_point=point)
    return found
