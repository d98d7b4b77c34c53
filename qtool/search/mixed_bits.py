"""Chooses the bits of each weight: the smallest model for an error, or the smallest error for a size.

The errors that single weights put into the outputs add up, as those of independent roundings do. Each weight starts
with its fewest bits; the step that takes away the most error for its bytes comes next, until the goal is met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    return _chosen(options, lambda _, noise: noise <= most)


def bits_for_size(options: Mapping[str, Sequence[BitsOption]], most: float) -> dict[str, int]:
    """Returns the bits of each weight with little noise in at most ``most`` bytes; the fewest where nothing fits."""
    found = {name: _line(forms)[0] for name, forms in options.items()}
    for name, step in _steps(options):
        size = sum(form.size for form in found.values()) - found[name].size + step.size
        # A smaller step of another weight may still fit.
        if size <= most and step.noise < found[name].noise:
            found[name] = step
    return {name: form.bits for name, form in found.items()}


def _chosen(options: Mapping[str, Sequence[BitsOption]], done: Callable[[float, float], bool]) -> dict[str, int]:
    found = {name: _line(forms)[0] for name, forms in options.items()}
    for name, step in _steps(options):
        if done(sum(form.size for form in found.values()), sum(form.noise for form in found.values())):
            break
        found[name] = step
    return {name: form.bits for name, form in found.items()}


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
