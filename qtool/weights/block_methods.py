"""The methods that choose integers and scales of blocks."""

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
