"""What there is to choose from for weights in blocks; names alone, which options show."""

from __future__ import annotations

from enum import StrEnum

# Accuracy levels of MatMulNBits: float products, and products whose activations are rounded to 8 bits in the kernel.
EXACT_LEVEL, INTEGER_LEVEL = 0, 4


class BlockMethod(StrEnum):
    """What chooses integers and scales of blocks.

    RTN rounds to nearest, MSE chooses scales by the squared error, and GPTQ rounds on these with the remaining inputs
    compensating each error. AWQ first scales up the weights of strong inputs.
    """

    RTN = "rtn"
    MSE = "mse"
    GPTQ = "gptq"
    AWQ = "awq"
    AWQ_GPTQ = "awq-gptq"

    @property
    def scales_inputs(self) -> bool:
        """Whether it scales the inputs of layers."""
        return self in (BlockMethod.AWQ, BlockMethod.AWQ_GPTQ)


class WeightFormat(StrEnum):
    """How integers of weights are written: as onnxruntime's MatMulNBits, or as DequantizeLinear of opset 21."""

    NBITS = "nbits"
    QDQ = "qdq"
