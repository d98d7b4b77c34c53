"""Every operator that is computed in torch; others run in onnxruntime, without gradients."""

from __future__ import annotations

from collections.abc import Mapping

from qtool.learn.operators.calls import Operator
from qtool.learn.operators.elementwise import ELEMENTWISE
from qtool.learn.operators.normalizations import NORMALIZATIONS
from qtool.learn.operators.packed_products import PACKED_PRODUCTS
from qtool.learn.operators.products import PRODUCTS
from qtool.learn.operators.quantization import QUANTIZATION
from qtool.learn.operators.recurrent import RECURRENT
from qtool.learn.operators.reductions import REDUCTIONS
from qtool.learn.operators.shapes import SHAPES
from qtool.learn.operators.windows import WINDOWS

OPERATORS: Mapping[str, Operator] = {
    **ELEMENTWISE,
    **NORMALIZATIONS,
    **PACKED_PRODUCTS,
    **PRODUCTS,
    **QUANTIZATION,
    **RECURRENT,
    **REDUCTIONS,
    **SHAPES,
    **WINDOWS,
}
