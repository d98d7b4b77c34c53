"""The accuracy goal of a mixed-precision search."""

from __future__ import annotations

from dataclasses import dataclass

from qtool.search.output_evaluator import Assessment


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Minimum figures for the quantized model; those that are None are not checked.

    Attributes:
        min_sqnr_db: SQNR of the worst output, in dB.
        min_agreement: share of samples, 0 to 1, with the top-1 class of the float model.
        max_drop: share of samples, 0 to 1, by which top-1 accuracy may fall.
    """

    min_sqnr_db: float | None = None
    min_agreement: float | None = None
    max_drop: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no figure is set."""
        return self.min_sqnr_db is None and self.min_agreement is None and self.max_drop is None

    @property
    def needs_classes(self) -> bool:
        """Whether it counts samples by class, which takes many samples."""
        return self.min_agreement is not None or self.max_drop is not None

    @property
    def description(self) -> str:
        """The options that set it."""
        parts = []
        if self.min_sqnr_db is not None:
            parts.append(f"--min-sqnr {self.min_sqnr_db:g}")
        if self.min_agreement is not None:
            parts.append(f"--min-agreement {self.min_agreement:g}")
        if self.max_drop is not None:
            parts.append(f"--max-drop {self.max_drop * 100:g}%")
        return " ".join(parts)

    def margin(self, reached: Assessment) -> float:
        """Returns the smallest relative margin over all figures; negative if one of them fails."""
        margins = []
        if self.min_sqnr_db is not None:
            margins.append((reached.sqnr_db - self.min_sqnr_db) / max(abs(self.min_sqnr_db), 1.0))
        if self.min_agreement is not None:
            margins.append((reached.agreement or 0.0) - self.min_agreement)
        if self.max_drop is not None:
            # Tolerance for the rounding error in differences of shares.
            drop = 1.0 if reached.top1_drop is None else reached.top1_drop
            margins.append(self.max_drop - drop + 1e-12)
        return min(margins, default=0.0)

    def reached_in_words(self, reached: Assessment) -> str:
        """Returns the figures of the goal as text."""
        parts = []
        if self.min_sqnr_db is not None:
            parts.append(f"{reached.sqnr_db:.1f} dB")
        if self.min_agreement is not None and reached.agreement is not None:
            parts.append(f"{reached.agreement:.1%} agreement")
        if self.max_drop is not None and reached.top1_drop is not None:
            parts.append(f"{reached.top1_drop * 100:+.2f} points of drop")
        return ", ".join(parts)
