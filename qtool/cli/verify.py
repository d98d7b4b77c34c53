"""``qtool verify``: how much of a model really runs on integers, and whether it is safe on its target."""

from __future__ import annotations

from typing import Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options import DebugOption, JsonOption, ModelArgument, QuietOption, TargetOption


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
    target: TargetOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Shows which nodes onnxruntime runs on integers, and with --target whether a machine can overflow its sums."""
    from qtool.cli.quantize_output import coverage_as_json, show_coverage
    from qtool.cli.target_output import proof_as_json, show_proof
    from qtool.schemes import preset
    from qtool.workflows.saturation_proof import check_saturation, prove
    from qtool.workflows.verify import check_coverage
    from qtool.workflows.verify import verify as run

    console = Console(json=json, quiet=quiet, debug=debug)
    machine = None if target is None else preset(target)
    report = run(model)
    proof = None if machine is None else prove(model, machine)
    if json:
        found: dict[str, object] = {
            "schema": "qtool.verify/1",
            "model": str(report.model),
            "onnxruntime": report.onnxruntime,
            **coverage_as_json(report.coverage),
        }
        console.json(found if proof is None else {**found, "saturation": proof_as_json(proof)})
    else:
        show_coverage(console, report.coverage)
        if proof is not None:
            show_proof(console, proof)
    if min_coverage is not None:
        check_coverage(report, min_coverage)
    if proof is not None:
        check_saturation(proof)
