"""What is found out about one model."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT = "float"


@dataclass(slots=True)
class Judgement:
    """What was found out about one model.

    Attributes:
        sqnr_db: signal over error power of the first output, 10 log10(sum x^2 / sum (x - y)^2).
        agreement: share of samples for which it chooses the same class, or for unit vectors the same nearest neighbour.
        accuracy: share of right classes, where there are labels.
        median_ms: median time of one sample.
        speedup: median over rounds of the float model's time over this one's in the same round.
        error: why there is nothing else.
    """

    sqnr_db: float | None = None
    agreement: float | None = None
    accuracy: float | None = None
    median_ms: float | None = None
    speedup: float | None = None
    error: str | None = None
