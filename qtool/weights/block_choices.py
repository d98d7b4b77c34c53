"""What there is to choose from for weights in blocks; names alone, which options show."""

from __future__ import annotations

from enum import StrEnum


class BlockMethod(StrEnum):
    """What chooses integers and scales of blocks.

    RTN rounds to nearest, MSE chooses scales by the squared error, and GPTQ rounds on these with the remaining inputs
    compensating each error.
    """

    RTN = "rtn"
    MSE = "mse"
    GPTQ = "gptq"


class WeightFormat(StrEnum):
    """How integers of weights are written: as onnxruntime's MatMulNBits, or as DequantizeLinear of opset 21."""

    NBITS = "nbits"
    QDQ = "qdq"
