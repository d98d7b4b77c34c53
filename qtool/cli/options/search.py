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
from qtool.cli.options.timing import show_times
from qtool.json_values import json_value

if TYPE_CHECKING:
    from qtool.workflows.quantize.request import QuantizeReport

_MOST_NAMES = 6

BiasCorrectionOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--bias-correction/--no-bias-correction",
        help="Let biases take back what rounding weights does to means. Default: where it helps the outputs.",
        show_default=False,
    ),
]
CleOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--cle/--no-cle",
        help="Scale channels of activations against the layers around them. Default: where it helps.",
        show_default=False,
    ),
]
SmoothQuantOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--smoothquant/--no-smoothquant",
        help="Move outlier channels of activations into weights. Default: where it helps.",
        show_default=False,
    ),
]
GptqOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--gptq/--no-gptq",
        help="Round weights so that products, not weights, are off by least. Default: where it helps.",
        show_default=False,
    ),
]
WeightClippingOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--weight-clipping/--no-weight-clipping",
        help="Let scales of weights be too narrow for the largest. Default: where it helps, with --effort best.",
        show_default=False,
    ),
]
ReconstructionOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--reconstruction/--no-reconstruction",
        help="Fit biases, with --effort best weights too, to the float model, layer by layer. Default: where it helps.",
        show_default=False,
    ),
]
MaxFloatOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--max-float",
        metavar="SHARE",
        help="Part of what integers save that may be given up, by float layers, for accuracy: 10%, or 0 for none. "
        "Default: as much as makes a run 4% longer, and up to 50% as long as the outputs are below 20 dB; 0 with "
        "--effort fast.",
        show_default=False,
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
        remarks.append(f"scaled channels of {len(report.rewritten.equalized)} tensors against the layers around them")
    if report.rewritten.smoothed:
        remarks.append(f"moved outlier channels into the weights behind {len(report.rewritten.smoothed)} tensors")
    if report.corrections.methods:
        chosen = Counter(report.corrections.methods.values()).most_common()
        remarks.append("ranges by " + ", ".join(f"{method} ({count})" for method, count in chosen))
    rounding = report.corrections.rounding
    if rounding.guided:
        remarks.append(f"rounded the weights of {len(rounding.guided)} layers with GPTQ")
    if report.unsigned:
        layers = f"{len(report.unsigned)} layers: {_some(report.unsigned)}"
        remarks.append(f"weights in u8, whose sums have 32 bits, for {layers}")
    if rounding.fitted or report.corrections.biases:
        remarks.append(f"fitted {len(rounding.fitted)} weights and {len(report.corrections.biases)} biases")
    return remarks


def show_search(console: Console, report: QuantizeReport) -> None:
    """Prints what every correction gained, which layers stay float, and how fast the result is."""
    if report.gains:
        console.table(
            "What each correction does to the outputs",
            ("correction", "SQNR in dB before", "after", "kept"),
            [
                (gain.correction, _decibels(gain.before_db), _decibels(gain.after_db), "yes" if gain.kept else "no")
                for gain in report.gains
            ],
        )
    kept = report.kept_float
    if kept is not None and kept.choice.layers:
        layers = _some([layer.group.layer for layer in kept.choice.layers])
        console.say(
            f"kept float, for {kept.choice.share:.1%} of what integers save: {layers}; {_decibels(kept.plain_db)} dB "
            f"with integers everywhere, {_decibels(kept.choice.sqnr_db)} dB so, on {kept.samples} calibration samples"
        )
    if kept is not None and kept.dynamic:
        console.say(f"layers that find their ranges as they run: {_some(kept.dynamic)}")
    if kept is not None and kept.stopped is not None:
        console.warn(f"the search for layers to keep float ended early: {kept.stopped}")
    show_times(console, report)


def search_as_json(report: QuantizeReport) -> dict[str, object]:
    """Returns what the search did as values for JSON; numbers that are not finite become null."""
    kept = report.kept_float
    return {
        "chosen_methods": dict(report.corrections.methods),
        "equalized_tensors": list(report.rewritten.equalized),
        "smoothed_tensors": list(report.rewritten.smoothed),
        "gptq_layers": list(report.corrections.rounding.guided),
        "fitted_weights": list(report.corrections.rounding.fitted),
        "fitted_biases": list(report.corrections.biases),
        "gains": [json_value(asdict(gain)) for gain in report.gains],
        "kept_float": None
        if kept is None
        else {
            "layers": [layer.group.layer for layer in kept.choice.layers],
            "dynamic_layers": list(kept.dynamic),
            "share_given_up": kept.choice.share,
            "sqnr_db": json_value(kept.choice.sqnr_db),
            "integers_everywhere_sqnr_db": json_value(kept.plain_db),
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
