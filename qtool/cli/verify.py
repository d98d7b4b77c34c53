"""``qtool verify``: how much of a model really runs on integers."""

from __future__ import annotations

from typing import Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options import DebugOption, JsonOption, ModelArgument, QuietOption


def verify(
    model: ModelArgument,
    min_coverage: Annotated[
        float | None,
        typer.Option(
            "--min-coverage",
            min=0.0,
            max=1.0,
            help="Exit with 1 if a smaller share of the quantizable nodes runs on integers.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Shows which nodes onnxruntime runs on integers, and why the others stay float."""
    from qtool.cli.quantize_output import coverage_as_json, show_coverage
    from qtool.workflows.verify import check_coverage
    from qtool.workflows.verify import verify as run

    console = Console(json=json, quiet=quiet, debug=debug)
    report = run(model)
    if json:
        console.json(
            {
                "schema": "qtool.verify/1",
                "model": str(report.model),
                "onnxruntime": report.onnxruntime,
                **coverage_as_json(report.coverage),
            }
        )
    else:
        show_coverage(console, report.coverage)
    if min_coverage is not None:
        check_coverage(report, min_coverage)
