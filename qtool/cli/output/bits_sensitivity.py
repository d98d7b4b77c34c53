"""Shows what each weight loses with few bits, and the curve of mixed bits."""

from __future__ import annotations

from qtool.cli.console import Console
from qtool.search.mixed_bits import FLOAT_BITS
from qtool.workflows.tune.sensitivity import in_decibels
from qtool.workflows.tune.weight_only.bits_sensitivity import BITS, BitsSensitivityRequest, CurvePoint, bits_sensitivity


def run_bits(console: Console, request: BitsSensitivityRequest, *, worst: int, json: bool) -> None:
    """Runs the analysis, and shows what came of it."""
    report = bits_sensitivity(request, console.progress())
    if json:
        console.json(report.as_json())
        return
    console.table(
        "Weights alone in few bits, one at a time",
        ("weight", *(f"SQNR at {bits} bits" for bits in BITS), *(f"saved at {bits}, MB" for bits in BITS)),
        [
            (
                row.tensor,
                *(in_decibels(row.sqnr_db[bits]) for bits in BITS),
                *(f"{row.saved_bytes[bits] / 1e6:.2f}" for bits in BITS),
            )
            for row in report.weights[:worst]
        ],
        f"the worst {min(worst, len(report.weights))} of {len(report.weights)} weights, rounded by "
        f"{report.method.value}; {request.scheme.description}",
    )
    console.table(
        "Mixed bits: file size and accuracy",
        ("goal", "file, MB", "of float", "SQNR", "weights"),
        [
            (
                point.goal,
                f"{point.file_bytes / 1e6:.2f}",
                f"{point.file_bytes / report.float_bytes:.1%}",
                in_decibels(point.sqnr_db),
                _counted(point),
            )
            for point in report.curve
        ],
        "as `qtool quantize --scheme weights --min-sqnr` and `--max-size` choose them; measured on samples that were "
        "not used for rounding",
    )
    for file in (request.output, request.plot):
        if file is not None:
            console.say(f"wrote {file}")


def _counted(point: CurvePoint) -> str:
    return ", ".join(
        f"{count} in float" if bits == FLOAT_BITS else f"{count} in {bits} bits"
        for bits, count in point.weights.items()
    )
