"""The options of ``qtool quantize`` that say what to reach by keeping layers float, and what is shown of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from qtool.cli.console import Console
from qtool.cli.options.groups import ACCURACY_GOAL
from qtool.errors import GateError, UsageError

if TYPE_CHECKING:
    from qtool.search.accuracy_goal import Goal
    from qtool.workflows.tune.accuracy_target import MixedPrecision

MinSqnrOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--min-sqnr",
        metavar="DB",
        help="Fewest float layers for this SQNR, or exit 1.",
        rich_help_panel=ACCURACY_GOAL,
    ),
]
MinAgreementOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--min-agreement",
        metavar="SHARE",
        help="The same for equal top-1 classes: 95% or 0.95.",
        rich_help_panel=ACCURACY_GOAL,
    ),
]
MaxDropOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--max-drop",
        metavar="SHARE",
        help="The same for lost top-1 accuracy: 0.5%.",
        rich_help_panel=ACCURACY_GOAL,
    ),
]
TimeBudgetOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--time-budget",
        metavar="SECONDS",
        min=0.0,
        help="Stop the search with the best so far.",
        rich_help_panel=ACCURACY_GOAL,
    ),
]


def goal_of(min_sqnr: float | None, min_agreement: str | None, max_drop: str | None) -> Goal | None:
    """Returns what the options ask for; None when they are not given.

    Raises:
        UsageError: a value makes no sense.
    """
    from qtool.search.accuracy_goal import Goal

    if min_sqnr is not None and not math.isfinite(min_sqnr):
        raise UsageError(f"--min-sqnr must be a finite number of decibels, not {min_sqnr}", fix="pass one such as 20")
    goal = Goal(
        min_sqnr_db=min_sqnr,
        min_agreement=None if min_agreement is None else share_of("--min-agreement", min_agreement, example="0.95"),
        max_drop=None if max_drop is None else share_of("--max-drop", max_drop, example="0.5%"),
    )
    return None if goal.is_empty else goal


def show_mixed(console: Console, mixed: MixedPrecision) -> None:
    """Prints what became of a goal, and what it cost."""
    goal = mixed.goal
    console.say(
        f"{goal.description}: {goal.reached_in_words(mixed.reached)} on {mixed.samples} samples, "
        f"{goal.reached_in_words(mixed.plain)} fully quantized"
    )
    if mixed.layers:
        console.say(f"kept in float for it: {', '.join(mixed.layers)} ({mixed.nodes} nodes)")
        console.say(f"{mixed.speedup:.2f}x as fast as float; {mixed.plain_speedup:.2f}x fully quantized")
    else:
        console.say(f"no layer is kept in float for it; {mixed.speedup:.2f}x as fast as float")
    if mixed.speedup < 1.0:
        console.warn("the result is slower than the float model: lower the goal, or stay with float")


def mixed_as_json(mixed: MixedPrecision | None) -> dict[str, object] | None:
    """Returns what became of a goal for JSON."""
    from dataclasses import asdict

    if mixed is None:
        return None
    return {
        "goal": asdict(mixed.goal),
        "met": mixed.met,
        "reached": asdict(mixed.reached),
        "integers_everywhere": asdict(mixed.plain),
        "float_layers": list(mixed.layers),
        "nodes": mixed.nodes,
        "samples": mixed.samples,
        "tried": mixed.tried,
        "stopped": mixed.stopped,
        "speedup": mixed.speedup,
        "integers_everywhere_speedup": mixed.plain_speedup,
    }


def check_goal(mixed: MixedPrecision | None) -> None:
    """Refuses a goal that was missed, once everything is written and shown.

    Raises:
        GateError: it was.
    """
    if mixed is None or mixed.met:
        return
    ended = "" if mixed.stopped is None else f", {mixed.stopped}"
    raise GateError(
        f"{mixed.goal.description} is not reached{ended}: the model that was written has "
        f"{mixed.goal.reached_in_words(mixed.reached)}",
        fix="try another --method, give more calibration data or time, or lower the goal",
    )


def share_of(option: str, text: str, *, example: str) -> float:
    """Returns the share, 0 to 1, that ``text`` gives as a number or in percent.

    Raises:
        UsageError: it gives none.
    """
    percent = text.strip().endswith("%")
    try:
        value = float(text.strip().removesuffix("%")) / (100.0 if percent else 1.0)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"{option} must be between 0 and 1, not '{text}'", fix=f"pass one such as {example}")
    return value
