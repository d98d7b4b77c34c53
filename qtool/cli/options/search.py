"""The options of ``qtool quantize`` that say what to look for, and what is shown of what was found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from qtool.cli.console import Console
from qtool.cli.options.goal import share_of
from qtool.cli.options.groups import ACCURACY_GOAL, CORRECTIONS
from qtool.cli.options.timing import show_times
from qtool.workflows.tune.efforts import Effort

if TYPE_CHECKING:
    from qtool.workflows.quantize.request import QuantizeReport

_MOST_NAMES = 6

EffortOption: TypeAlias = Annotated[
    Effort,
    typer.Option("--effort", metavar="LEVEL", help="Search: fast, balanced, best.", rich_help_panel=CORRECTIONS),
]
CleOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--cle/--no-cle",
        help="Cross-layer equalization. Default: auto.",
        rich_help_panel=CORRECTIONS,
    ),
]
SmoothQuantOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--smoothquant/--no-smoothquant",
        help="Move outliers into weights. Default: auto.",
        rich_help_panel=CORRECTIONS,
    ),
]
GptqOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--gptq/--no-gptq",
        help="Error-compensated rounding. Default: auto.",
        rich_help_panel=CORRECTIONS,
    ),
]
BiasCorrectionOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--bias-correction/--no-bias-correction",
        help="Correct shifted means. Default: auto.",
        rich_help_panel=CORRECTIONS,
    ),
]
WeightClippingOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--weight-clipping/--no-weight-clipping",
        help="Clip weights. Default: auto with --effort best.",
        rich_help_panel=CORRECTIONS,
    ),
]
LearnedRoundingOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--learned-rounding/--no-learned-rounding",
        help="Learn to round. Default: with --effort best.",
        rich_help_panel=CORRECTIONS,
    ),
]
ReconstructionOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--reconstruction/--no-reconstruction",
        help="Fit layers to the float model. Default: auto.",
        rich_help_panel=CORRECTIONS,
    ),
]
MaxFloatOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--max-float",
        metavar="SHARE",
        help="Gain that accuracy may cost: 10%. Default: auto.",
        rich_help_panel=ACCURACY_GOAL,
    ),
]


def most_float_of(text: str | None) -> float | None:
    """Returns the share that ``--max-float`` names, None where it is not given.

    Raises:
        UsageError: it is none.
    """
    return None if text is None else share_of("--max-float", text, example="10%")


def search_remarks(report: QuantizeReport) -> list[str]:
    """Returns a line for each thing that the search did."""
    remarks = []
    if report.rewritten.equalized:
        remarks.append(f"cross-layer equalization of {len(report.rewritten.equalized)} tensors")
    if report.rewritten.smoothed:
        remarks.append(f"SmoothQuant on {len(report.rewritten.smoothed)} tensors")
    if report.corrections.methods:
        chosen = Counter(report.corrections.methods.values()).most_common()
        remarks.append("range methods: " + ", ".join(f"{method} ({count})" for method, count in chosen))
    rounding = report.corrections.rounding
    if rounding.guided:
        remarks.append(f"GPTQ on the weights of {len(rounding.guided)} layers")
    if report.unsigned:
        layers = f"{len(report.unsigned)} layers: {_some(report.unsigned)}"
        remarks.append(f"u8 weights, whose sums have 32 bits, in {layers}")
    if rounding.fitted or report.corrections.biases:
        remarks.append(f"reconstruction of {len(rounding.fitted)} weights and {len(report.corrections.biases)} biases")
    return remarks


def show_search(console: Console, report: QuantizeReport) -> None:
    """Prints what every correction gained, which layers stay float, and how fast the result is."""
    if report.gains:
        console.table(
            "Effect of each correction on the outputs",
            ("correction", "SQNR in dB before", "after", "kept"),
            [
                (gain.correction, _decibels(gain.before_db), _decibels(gain.after_db), "yes" if gain.kept else "no")
                for gain in report.gains
            ],
        )
    if report.evidence:
        console.table(
            f"Changes tried on top, on {report.evidence[0].samples} samples held back from them",
            ("change", "less noise, dB", "99 % interval", "SQNR in dB before", "after", "kept"),
            [
                (
                    found.change,
                    f"{found.gain_db:+.2f}",
                    f"{found.low_db:+.2f} to {found.high_db:+.2f}",
                    _decibels(found.before_db),
                    _decibels(found.after_db),
                    "yes" if found.kept else "no",
                )
                for found in report.evidence
            ],
        )
    kept = report.kept_float
    if kept is not None and kept.choice.layers:
        layers = _some([layer.group.layer for layer in kept.choice.layers])
        console.say(
            f"kept in float for accuracy, {cost_of_float(kept.choice.share)}: {layers}; SQNR "
            f"{_decibels(kept.plain_db)} dB fully quantized, {_decibels(kept.choice.sqnr_db)} dB now, on "
            f"{kept.samples} calibration samples"
        )
    if kept is not None and kept.dynamic:
        console.say(f"dynamically quantized layers: {_some(kept.dynamic)}")
    if kept is not None and kept.stopped is not None:
        console.warn(f"the search for layers to keep float ended early: {kept.stopped}")
    show_times(console, report)


def cost_of_float(share: float) -> str:
    """Tells what layers in float give up of the time that integers save, which may be nothing where it was measured."""
    return f"at {share:.1%} of the time saved" if share > 0.0 else "which takes no more time"


def search_as_json(report: QuantizeReport) -> dict[str, object]:
    """Returns what the search did for JSON."""
    kept = report.kept_float
    return {
        "chosen_methods": dict(report.corrections.methods),
        "equalized_tensors": list(report.rewritten.equalized),
        "smoothed_tensors": list(report.rewritten.smoothed),
        "gptq_layers": list(report.corrections.rounding.guided),
        "fitted_weights": list(report.corrections.rounding.fitted),
        "fitted_biases": list(report.corrections.biases),
        "gains": [asdict(gain) for gain in report.gains],
        "held_back_evidence": [asdict(found) for found in report.evidence],
        "kept_float": None
        if kept is None
        else {
            "layers": [layer.group.layer for layer in kept.choice.layers],
            "dynamic_layers": list(kept.dynamic),
            "share_given_up": kept.choice.share,
            "sqnr_db": kept.choice.sqnr_db,
            "integers_everywhere_sqnr_db": kept.plain_db,
            "samples": kept.samples,
            "stopped": kept.stopped,
        },
        "speedup": None if report.speedup is None else report.speedup.median,
        "kept_float_for_speed": list(report.slow),
        "unsigned_layers": list(report.unsigned),
    }


def _some(names: Sequence[str]) -> str:
    """Returns the names, of many only the first and how many there are more; ``--json`` lists all."""
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:_MOST_NAMES])} and {len(names) - _MOST_NAMES} more"


def _decibels(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else ("no noise" if value > 0 else "unusable")
