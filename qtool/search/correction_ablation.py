"""Ablation of corrections such as GPTQ or SmoothQuant: keeps the set that brings the outputs closest to float."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import onnx_ir as ir

from qtool.progress import Advance
from qtool.search.output_evaluator import OutputEvaluator
from qtool.search.quantized_candidate import Quantize

Candidates = TypeVar("Candidates", bound=Quantize)

# A correction helps on average, so it is dropped only if it costs more than this on the samples, in dB.
_BENEFIT_OF_DOUBT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """The effect of one correction on the outputs, together with the other corrections that were kept.

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
    """Measures corrections and decides which ones to keep.

    Attributes:
        gains: the effect of every correction, in the order in which they are applied.
    """

    def __init__(self, evaluator: OutputEvaluator, *, veto: OutputEvaluator | None = None) -> None:
        """Measures with ``evaluator``; corrections fitted to a few samples must not degrade ``veto`` either."""
        self._evaluator = evaluator
        self._veto = veto
        self.gains: list[Gain] = []

    def helps(self, correction: str, before: ir.Model, after: ir.Model, *, always: bool, doubt_db: float = 0.0) -> bool:
        """Returns whether one change stays: it costs at most ``doubt_db``, or is wanted ``always``."""
        before_db, after_db = self._evaluator.sqnr_db(before), self._evaluator.sqnr_db(after)
        kept = always or after_db >= before_db - doubt_db
        self.gains.append(Gain(correction=correction, before_db=before_db, after_db=after_db, kept=kept))
        return kept

    def best(
        self,
        candidates: Candidates,
        corrections: Mapping[str, Callable[[Candidates], Candidates]],
        *,
        advance: Advance,
        stop: Callable[[], bool] = lambda: False,
    ) -> Candidates:
        """Returns ``candidates`` with a set of ``corrections`` that no single addition or removal improves.

        All of them together are tried first, since some help only in combination. When ``stop`` returns True, the best
        set so far is taken.

        Args:
            candidates: makes the uncorrected model.
            corrections: what to try, by name, in the order in which they are applied.
            advance: called with 1 after every try.
            stop: called before every try but the first.
        """
        reached: dict[frozenset[str], float] = {}

        def made(chosen: frozenset[str]) -> Candidates:
            changed = candidates
            for name in corrections:
                if name in chosen:
                    changed = corrections[name](changed)
            return changed

        def merit(chosen: frozenset[str]) -> float:
            if chosen not in reached:
                reached[chosen] = self._evaluator.sqnr_db(made(chosen)({}).model)
                advance(1)
            return reached[chosen] + _BENEFIT_OF_DOUBT * len(chosen)

        best = frozenset(corrections)
        merit(best)
        while True:
            beside = [best ^ {name} for name in corrections]
            for chosen in beside:
                if chosen in reached or not stop():
                    merit(chosen)
            better = max((chosen for chosen in beside if chosen in reached), key=merit, default=best)
            if merit(better) <= merit(best):
                break
            best = better
        for name in corrections:
            without, within = reached.get(best - {name}), reached.get(best | {name})
            if without is not None and within is not None:
                self.gains.append(Gain(correction=name, before_db=without, after_db=within, kept=name in best))
        return made(best)

    def better_of(
        self, starts: Sequence[Candidates], correct: Callable[[Candidates], Candidates]
    ) -> tuple[int, Candidates]:
        """Returns the index of the start that is best once corrected, and its corrected form.

        The gains of the other starts are dropped.

        Args:
            starts: makes uncorrected models.
            correct: corrects one of them and records the gains.
        """
        known = self.gains
        found: list[tuple[float, Candidates, list[Gain]]] = []
        for start in starts:
            self.gains = []
            corrected = correct(start)
            found.append((self._evaluator.sqnr_db(corrected({}).model), corrected, self.gains))
        best = max(range(len(found)), key=lambda place: found[place][0])
        self.gains = [*known, *found[best][2]]
        return best, found[best][1]

    def undo(self, corrections: Collection[str]) -> None:
        """Records that ``corrections`` were not kept after all."""
        self.gains = [replace(gain, kept=gain.kept and gain.correction not in corrections) for gain in self.gains]

    def first_of(
        self,
        candidates: Candidates,
        attempts: Mapping[str, Callable[[], Candidates]],
        kept_float: Mapping[str, str],
        *,
        always: bool,
    ) -> Candidates:
        """Returns the first of ``attempts`` that is no worse; ``candidates`` where all are and none is required.

        All of them are evaluated with the nodes of ``kept_float`` in float.

        Args:
            candidates: makes the model as it is.
            attempts: what makes each candidate, by name, the most promising first.
            kept_float: nodes with the reason why they stay float.
            always: whether the best one is taken even if it is worse.
        """
        plain = candidates(kept_float).model
        before = self._evaluator.sqnr_db(plain)
        least = None if self._veto is None else self._veto.sqnr_db(plain) - _BENEFIT_OF_DOUBT
        made: dict[str, Candidates] = {}
        harmless: dict[str, bool] = {}
        reached: dict[str, float] = {}
        for name, make in attempts.items():
            made[name] = make()
            model = made[name](kept_float).model
            reached[name] = self._evaluator.sqnr_db(model)
            harmless[name] = reached[name] >= before
            if harmless[name] and self._veto is not None and least is not None:
                harmless[name] = self._veto.sqnr_db(model) >= least
            if harmless[name]:
                break
        best = max(reached, key=lambda name: (harmless[name], reached[name]))
        taken = always or harmless[best]
        for name, after in reached.items():
            self.gains.append(Gain(correction=name, before_db=before, after_db=after, kept=taken and name == best))
        return made[best] if taken else candidates
