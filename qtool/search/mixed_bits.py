"""Chooses the bits of each weight: the smallest model for an error, or the smallest error for a size.

The errors that single weights put into the outputs add up, as those of independent roundings do. Each weight starts
with its fewest bits; the step that takes away the most error for its bytes comes next, until the goal is met. Steps
that the last one has made needless are taken back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

FLOAT_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsOption:
    """One form of a weight.

    Attributes:
        bits: of each of its numbers; ``FLOAT_BITS`` where it stays float.
        size: in bytes, scales included.
        noise: what it alone puts into the outputs, over their signal.
    """

    bits: int
    size: float
    noise: float


def bits_for_noise(options: Mapping[str, Sequence[BitsOption]], most: float) -> dict[str, int]:
    """Returns the bits of each weight with which all their noise is at most ``most``, in few bytes."""
    found = {name: _line(forms)[0] for name, forms in options.items()}
    for name, step in _steps(options):
        if sum(form.noise for form in found.values()) <= most:
            break
        found[name] = step
    return {name: form.bits for name, form in _without_needless(options, found, most).items()}


def bits_for_size(options: Mapping[str, Sequence[BitsOption]], most: float) -> dict[str, int]:
    """Returns the bits of each weight with little noise in at most ``most`` bytes; the fewest where nothing fits."""
    found = {name: _line(forms)[0] for name, forms in options.items()}
    for name, step in _steps(options):
        size = sum(form.size for form in found.values()) - found[name].size + step.size
        # A smaller step of another weight may still fit.
        if size <= most and step.noise < found[name].noise:
            found[name] = step
    return {name: form.bits for name, form in found.items()}


def _without_needless(
    options: Mapping[str, Sequence[BitsOption]], found: Mapping[str, BitsOption], most: float
) -> dict[str, BitsOption]:
    """Takes steps back that a later, large one has made needless, those that save most first."""
    kept = dict(found)
    back = [
        (form.size - smaller.size, name, smaller) for name, form in found.items() for smaller in _line(options[name])
    ]
    for saved, name, smaller in sorted(back, key=lambda step: -step[0]):
        others = sum(form.noise for other, form in kept.items() if other != name)
        if saved > 0.0 and smaller.size < kept[name].size and others + smaller.noise <= most:
            kept[name] = smaller
    return kept


def _steps(options: Mapping[str, Sequence[BitsOption]]) -> list[tuple[str, BitsOption]]:
    """Returns every step to more bits, the most noise for its bytes first."""
    worth = []
    for name, forms in options.items():
        line = _line(forms)
        for before, after in pairwise(line):
            worth.append(((before.noise - after.noise) / (after.size - before.size), name, after))
    return [(name, after) for _, name, after in sorted(worth, key=lambda step: -step[0])]


def _line(forms: Sequence[BitsOption]) -> list[BitsOption]:
    """Returns the forms on the lower convex hull of noise over size, the smallest first.

    Along it each step takes away less noise for its bytes than the one before, so that sorted steps are in order.
    """
    line: list[BitsOption] = []
    for form in sorted(forms, key=lambda form: (form.size, form.noise)):
        if line and form.noise >= line[-1].noise:
            continue
        while len(line) > 1 and _slope(line[-2], line[-1]) <= _slope(line[-2], form):
            line.pop()
        line.append(form)
    return line


def _slope(before: BitsOption, after: BitsOption) -> float:
    return (before.noise - after.noise) / (after.size - before.size)
