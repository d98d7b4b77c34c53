"""Tries corrections of a quantization, alone and together, and keeps those that bring the outputs closest to float."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import onnx_ir as ir

from qtool.progress import Advance
from qtool.search.output_evaluator import OutputEvaluator
from qtool.search.quantized_candidate import Quantize

Candidates = TypeVar("Candidates", bound=Quantize)

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


class CorrectionAblation:
    """Judges corrections.

    Attributes:
        gains: what every correction did, in the order in which they are made.
    """

    def __init__(self, judge: OutputEvaluator, *, veto: OutputEvaluator | None = None) -> None:
        """Measures with ``judge``; what is fitted to a few samples must do no harm by that of ``veto``, either."""
        self._judge = judge
        self._veto = veto
        self.gains: list[Gain] = []

    def helps(self, correction: str, before: ir.Model, after: ir.Model, *, always: bool, doubt_db: float = 0.0) -> bool:
        """Returns whether one change stays: it does no more harm than ``doubt_db``, or is wanted ``always``."""
        before_db, after_db = self._judge.sqnr_db(before), self._judge.sqnr_db(after)
        kept = always or after_db >= before_db - doubt_db
        self.gains.append(Gain(correction=correction, before_db=before_db, after_db=after_db, kept=kept))
        return kept

    def best(
        self,
        variants: Candidates,
        corrections: Mapping[str, Callable[[Candidates], Candidates]],
        *,
        advance: Advance,
        stop: Callable[[], bool] = lambda: False,
    ) -> Candidates:
        """Returns ``variants`` with a set of ``corrections`` that no other one with one more or less of them beats.

        All of them together are tried first: some help only beside others. The best so far is taken at the end of time.

        Args:
            variants: makes the uncorrected model.
            corrections: what to try, by name, in the order in which they are made.
            advance: called with 1 after every try.
            stop: asked before every try but the first.
        """
        reached: dict[frozenset[str], float] = {}

        def made(chosen: frozenset[str]) -> Candidates:
            changed = variants
            for name in corrections:
                if name in chosen:
                    changed = corrections[name](changed)
            return changed

        def worth(chosen: frozenset[str]) -> float:
            if chosen not in reached:
                reached[chosen] = self._judge.sqnr_db(made(chosen)({}).model)
                advance(1)
            return reached[chosen] + _BENEFIT_OF_DOUBT * len(chosen)

        best = frozenset(corrections)
        worth(best)
        while True:
            beside = [best ^ {name} for name in corrections]
            for chosen in beside:
                if chosen in reached or not stop():
                    worth(chosen)
            better = max((chosen for chosen in beside if chosen in reached), key=worth, default=best)
            if worth(better) <= worth(best):
                break
            best = better
        for name in corrections:
            without, within = reached.get(best - {name}), reached.get(best | {name})
            if without is not None and within is not None:
                self.gains.append(Gain(correction=name, before_db=without, after_db=within, kept=name in best))
        return made(best)

    def better_of(
        self, starts: Sequence[Candidates], refine: Callable[[Candidates], Candidates]
    ) -> tuple[int, Candidates]:
        """Returns which start comes out best when it is refined, by its place, and what it comes to.

        What refining the others gained is forgotten.

        Args:
            starts: makes uncorrected models.
            refine: corrects one of them; what that gains it notes.
        """
        known = self.gains
        found: list[tuple[float, Candidates, list[Gain]]] = []
        for start in starts:
            self.gains = []
            refined = refine(start)
            found.append((self._judge.sqnr_db(refined({}).model), refined, self.gains))
        best = max(range(len(found)), key=lambda place: found[place][0])
        self.gains = [*known, *found[best][2]]
        return best, found[best][1]

    def undo(self, corrections: Collection[str]) -> None:
        """Notes that ``corrections`` were not kept after all."""
        self.gains = [replace(gain, kept=gain.kept and gain.correction not in corrections) for gain in self.gains]

    def first_of(
        self,
        variants: Candidates,
        candidates: Mapping[str, Callable[[], Candidates]],
        kept_float: Mapping[str, str],
        *,
        always: bool,
    ) -> Candidates:
        """Returns the first of ``candidates`` that does no harm, or ``variants`` where all do and nothing is a must.

        All of them are judged with the nodes of ``kept_float`` in float.

        Args:
            variants: makes the model as it is.
            candidates: what makes each candidate, by name, the most promising first.
            kept_float: nodes with the reason why they stay float.
            always: whether one is taken whatever it does: the best.
        """
        plain = variants(kept_float).model
        before = self._judge.sqnr_db(plain)
        least = None if self._veto is None else self._veto.sqnr_db(plain) - _BENEFIT_OF_DOUBT
        made: dict[str, Candidates] = {}
        harmless: dict[str, bool] = {}
        reached: dict[str, float] = {}
        for name, make in candidates.items():
            made[name] = make()
            model = made[name](kept_float).model
            reached[name] = self._judge.sqnr_db(model)
            harmless[name] = reached[name] >= before
            if harmless[name] and self._veto is not None and least is not None:
                harmless[name] = self._veto.sqnr_db(model) >= least
            if harmless[name]:
                break
        best = max(reached, key=lambda name: (harmless[name], reached[name]))
        taken = always or harmless[best]
        for name, after in reached.items():
            self.gains.append(Gain(correction=name, before_db=before, after_db=after, kept=taken and name == best))
        return made[best] if taken else variants
