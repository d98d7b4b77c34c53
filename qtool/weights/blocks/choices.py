"""What there is to choose from for weights in blocks; names alone, which options show."""

from __future__ import annotations

from enum import StrEnum


class BlockMethod(StrEnum):
    """What chooses integers and scales of blocks.

    RTN rounds to nearest, MSE chooses scales by the squared error, and GPTQ rounds on these with the remaining inputs
    compensating each error. AWQ first scales up the weights of strong inputs. GPTAQ starts from GPTQ, and rounds the
    layers once more in graph order, each for the inputs that the rounded layers before it give.
    """

    RTN = "rtn"
    MSE = "mse"
    GPTQ = "gptq"
    AWQ = "awq"
    AWQ_GPTQ = "awq-gptq"
    GPTAQ = "gptaq"
    AWQ_GPTAQ = "awq-gptaq"

    @property
    def scales_inputs(self) -> bool:
        """Whether it scales the inputs of layers."""
        return self in (BlockMethod.AWQ, BlockMethod.AWQ_GPTQ, BlockMethod.AWQ_GPTAQ)

    @property
    def in_sequence(self) -> BlockMethod | None:
        """The method that rounds in sequence what this one has rounded; None where there is none."""
        return _IN_SEQUENCE.get(self)

    @property
    def before(self) -> BlockMethod:
        """What a method that rounds in sequence starts from; every other one is itself."""
        return next((start for start, method in _IN_SEQUENCE.items() if method is self), self)


_IN_SEQUENCE = {BlockMethod.GPTQ: BlockMethod.GPTAQ, BlockMethod.AWQ_GPTQ: BlockMethod.AWQ_GPTAQ}


class WeightFormat(StrEnum):
    """How integers of weights are written: as onnxruntime's MatMulNBits, or as DequantizeLinear of opset 21."""

    NBITS = "nbits"
    QDQ = "qdq"
