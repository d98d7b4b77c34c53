"""Chooses passes by name and target."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches

from qtool.backends.registry import backend_named
from qtool.backends.targets import preset
from qtool.errors import UsageError
from qtool.passes.optimization.operators import Operators
from qtool.passes.registry import PASSES, Runs

# One of them would undo the other, or leave it nothing that runs on integers.
_OPPOSITES = {
    "fuse-rope": "decompose-rope",
    "fuse-hard-swish": "spell-out-hard-swish",
    "fuse-swish": "spell-out-hard-swish",
}
# Aliases of the default passes, and of those that prepare a graph for quantization.
DEFAULT, INTEGERS = "default", "integers"


def runs_onnxruntime(target: str | None) -> bool:
    """Returns whether a target runs onnxruntime's own operators; without one, only the standard's are used.

    Raises:
        UsageError: there is no such target.
    """
    return target is not None and backend_named(preset(target).backend).has_fused_operators


def operators_for(target: str | None) -> Operators:
    """Returns the operators of a target besides those of the standard.

    Raises:
        UsageError: there is no such target.
    """
    own = runs_onnxruntime(target)
    return Operators(onnxruntime=own, rotary_embedding=own or target is None)


def chosen_passes(only: Collection[str], skipped: Collection[str], target: str | None) -> tuple[str, ...]:
    """Returns the names of passes, in the order in which they run.

    Args:
        only: the names to run, ``default`` for the default ones and ``integers`` for those that prepare a graph for
        quantization; empty for ``default``.
        skipped: without these.
        target: the machine that the result is for.

    Raises:
        UsageError: there is no such pass or target, or none is left.
    """
    for option, names in (("--passes", set(only) - {DEFAULT, INTEGERS}), ("--skip", set(skipped))):
        for name in sorted(names - set(PASSES)):
            near = get_close_matches(name, PASSES, n=1, cutoff=0.0)
            raise UsageError(
                f"{option}: there is no pass '{name}'", fix=f"did you mean '{near[0]}'? see `qtool passes`"
            )
    usual = usual_passes(target) if not only or DEFAULT in only else ()
    integers = [name for name, entry in PASSES.items() if entry.runs is Runs.FOR_INTEGERS and INTEGERS in only]
    wanted = {*only, *usual, *integers} - set(skipped)
    for undone, undoing in _OPPOSITES.items():
        if undoing in wanted and undone not in only:
            wanted.discard(undone)
    chosen = tuple(name for name in PASSES if name in wanted)
    if not chosen:
        raise UsageError("no pass is left to run", fix="name fewer with --skip, or more with --passes")
    return chosen


def usual_passes(target: str | None) -> Sequence[str]:
    """Returns the names of the passes that run for a target without being named."""
    runs = {Runs.ALWAYS}
    if target is not None:
        runs.add(Runs.ON_ONNXRUNTIME if runs_onnxruntime(target) else Runs.ELSEWHERE)
    return [name for name, entry in PASSES.items() if entry.runs in runs]
