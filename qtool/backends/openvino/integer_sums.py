"""Whether OpenVINO's integer sums saturate on this processor."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir

from qtool.backends.openvino.execution import IN_OPENVINO

_INPUTS, _OUTPUTS, _LARGEST = 64, 16, 127
_WEIGHTS = ", ".join([str(_LARGEST)] * (_INPUTS * _OUTPUTS))
_PRODUCT = f"""
<ir_version: 8, opset_import: ["" : 17]>
product (float[1, {_INPUTS}] x) => (float[1, {_OUTPUTS}] y)
<float step = {{0.00392156862745098}}, uint8 zero = {{0}}, float unit = {{1.0}},
 int8[{_INPUTS}, {_OUTPUTS}] integers = {{{_WEIGHTS}}}>
{{
    q = QuantizeLinear (x, step, zero)
    a = DequantizeLinear (q, step, zero)
    w = DequantizeLinear (integers, unit)
    y = MatMul (a, w)
}}
"""


@cache
def sums_saturate() -> bool:
    """Returns whether the product of the largest activations and weights comes out smaller than it is.

    Raises:
        UsageError: OpenVINO is not installed.
        RuntimeRefusedError: it does not run at all.
    """
    with IN_OPENVINO.open(ir.from_onnx_text(_PRODUCT), threads=1) as session:
        found = session.run({"x": np.ones((1, _INPUTS), np.float32)})["y"]
    # Saturated pairs are about half of what they stand for.
    return bool(found.max() < 0.75 * _INPUTS * _LARGEST)
