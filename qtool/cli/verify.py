"""``qtool verify``: how much of a model really runs on integers, and whether it fits its target."""

from __future__ import annotations

from typing import Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options.goal import share_of
from qtool.cli.options.groups import GATES
from qtool.cli.options.shared import DebugOption, JsonOption, ModelArgument, OptionalTargetOption, QuietOption


def verify(
    model: ModelArgument,
    min_coverage: Annotated[
        str | None,
        typer.Option(
            "--min-coverage",
            metavar="SHARE",
            help="Exit 1 if fewer quantizable nodes run on integers: 90% or 0.9.",
            rich_help_panel=GATES,
        ),
    ] = None,
    target: OptionalTargetOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Shows which nodes a runtime really runs on integers.

    That is onnxruntime, or what --target is for, where it is installed; then also whether the target takes the model as
    it is: exits with 1 if not.
    """
    from qtool.backends.onnxruntime_cpu.this_machine import target_named
    from qtool.cli.output.quantize import coverage_as_json, show_coverage
    from qtool.cli.output.target import show_target, target_as_json
    from qtool.workflows.diagnose.verify import check_coverage
    from qtool.workflows.diagnose.verify import verify as run
    from qtool.workflows.quantize.target_check import check_gate, check_target

    console = Console(json=json, quiet=quiet, debug=debug)
    minimum = None if min_coverage is None else share_of("--min-coverage", min_coverage, example="90%")
    machine = None if target is None else target_named(target).scheme
    report = run(model, console.progress(), machine)
    fit = None if machine is None else check_target(model, machine)
    if json:
        found: dict[str, object] = {
            "schema": "qtool.verify/1",
            "model": str(report.model),
            "onnxruntime": report.versions["onnxruntime"],
            "versions": dict(report.versions),
            **coverage_as_json(report.coverage),
            "overflowing_layers": list(report.overflowing_layers),
        }
        console.json(found if fit is None else {**found, **target_as_json(fit)})
    else:
        show_coverage(console, report.coverage)
        if fit is not None:
            show_target(console, fit)
    if minimum is not None:
        check_coverage(report, minimum)
    if fit is not None:
        check_gate(fit)
