"""Raises old models to the first opset whose QuantizeLinear takes one scale per channel."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.version_converter import ConvertVersionPass

from qtool.errors import InputError

LOWEST_OPSET = 13
# The IR version that belongs to it; versions before 4 require every initializer among the inputs.
_LOWEST_IR_VERSION = 7
FIRST_OPSET_WITH_RESIZE_MODES = 11


class RaiseOpset(ir.passes.InPlacePass):
    """Converts models below opset 13 to 13: the smallest step, so the fewest operators change their form."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Converts when needed.

        Raises:
            InputError: an operator of the model cannot be converted.
        """
        opset = model.opset_imports.get("", LOWEST_OPSET)
        if opset >= LOWEST_OPSET:
            return ir.passes.PassResult(model, modified=False)
        try:
            result = ConvertVersionPass(target_version=LOWEST_OPSET, fallback=True)(model)
        except Exception as error:  # the converter's C++ part throws many kinds of errors
            raise _unconvertible(opset) from error
        if result.model.opset_imports.get("", 0) < LOWEST_OPSET:
            raise _unconvertible(opset)
        result.model.ir_version = max(result.model.ir_version, _LOWEST_IR_VERSION)
        if opset < FIRST_OPSET_WITH_RESIZE_MODES:
            keep_resizing(result.model)
        return result


def keep_resizing(model: ir.Model) -> None:
    """Names the coordinates that Upsample and Resize had before opset 11; the converter leaves the newer default."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "Resize" and node.domain == "":
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "asymmetric"
            )
            node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")


def _unconvertible(opset: int) -> InputError:
    return InputError(
        f"the model's opset {opset} cannot be raised to {LOWEST_OPSET}, which INT8 per channel needs",
        fix=f"export the model again with opset {LOWEST_OPSET} or newer",
    )
