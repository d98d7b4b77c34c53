"""Tries corrections of a quantization, alone and together, and keeps those that bring the outputs closest to float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import onnx_ir as ir

from qtool.progress import Advance
from qtool.search.output_judge import OutputJudge
from qtool.search.variant import Quantize

Variants = TypeVar("Variants", bound=Quantize)

# Each correction is right on average: it is left out only if the samples at hand say so by more than this, in dB.
_BENEFIT_OF_DOUBT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """Says what one correction does to the outputs, beside those that were kept with it.

    Attributes:
        correction: its name.
        before_db: SQNR of the worst output in dB without it.
        after_db: the same with it.
        kept: whether it was kept.
    """

    correction: str
    before_db: float
    after_db: float
    kept: bool


class Trials:
    """Judges corrections.

    Attributes:
        gains: what every correction did, in the order in which they are made.
    """

    def __init__(self, judge: OutputJudge) -> None:
        """Measures with ``judge``."""
        self._judge = judge
        self.gains: list[Gain] = []

    def helps(self, correction: str, before: ir.Model, after: ir.Model, *, always: bool) -> bool:
        """Returns whether one change stays: it does no harm, or is wanted ``always``."""
        before_db, after_db = self._judge.sqnr_db(before), self._judge.sqnr_db(after)
        kept = always or after_db >= before_db
        self.gains.append(Gain(correction=correction, before_db=before_db, after_db=after_db, kept=kept))
        return kept

    def best(
        self,
        variants: Variants,
        corrections: Mapping[str, Callable[[Variants], Variants]],
        *,
        advance: Advance,
    ) -> Variants:
        """Returns ``variants`` with the set of ``corrections`` that suits best; every set is tried.

        Args:
            variants: makes the uncorrected model.
            corrections: what to try, by name, in the order in which they are made.
            advance: called with 1 after every try.
        """
        reached: dict[frozenset[str], float] = {}
        made: dict[frozenset[str], Variants] = {}
        for count in range(len(corrections) + 1):
            for names in combinations(corrections, count):
                chosen = frozenset(names)
                changed = variants
                for name in names:
                    changed = corrections[name](changed)
                made[chosen] = changed
                reached[chosen] = self._judge.sqnr_db(changed({}).model)
                advance(1)
        best = max(reached, key=lambda names: (reached[names] + _BENEFIT_OF_DOUBT * len(names), len(names)))
        for name in corrections:
            without, within = reached[best - {name}], reached[best | {name}]
            self.gains.append(Gain(correction=name, before_db=without, after_db=within, kept=name in best))
        return made[best]

    def best_of(
        self, variants: Variants, candidates: Mapping[str, Variants], kept_float: Mapping[str, str], *, always: bool
    ) -> Variants:
        """Returns the best of ``candidates``, by name, or ``variants`` where that is better and nothing is a must.

        All of them are judged with the nodes of ``kept_float`` in float.
        """
        before = self._judge.sqnr_db(variants(kept_float).model)
        reached = {name: self._judge.sqnr_db(candidate(kept_float).model) for name, candidate in candidates.items()}
        best = max(reached, key=lambda name: reached[name])
        taken = always or reached[best] >= before
        for name, after in reached.items():
            self.gains.append(Gain(correction=name, before_db=before, after_db=after, kept=taken and name == best))
        return candidates[best] if taken else variants
