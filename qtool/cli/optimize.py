"""``qtool optimize``: the same model with fewer nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.calib.image_layout import Layout
from qtool.cli.console import Console
from qtool.cli.options.groups import COMPARISON, OUTPUT, PASSES
from qtool.cli.options.shared import (
    BatchSizeOption,
    DebugOption,
    EvalDataOption,
    ForceOption,
    JsonOption,
    LimitOption,
    ModelArgument,
    OptionalTargetOption,
    OutputDirOption,
    OutputOption,
    PreprocessOption,
    QuietOption,
)
from qtool.errors import UsageError

if TYPE_CHECKING:
    from qtool.workflows.optimize.optimize import OptimizeReport


def _pass_names() -> list[str]:
    from qtool.passes.registry import PASSES as REGISTRY

    return ["default", "integers", *REGISTRY]


def optimize(
    model: ModelArgument,
    output: OutputOption = None,
    output_dir: OutputDirOption = None,
    passes: Annotated[
        list[str] | None,
        typer.Option(
            "--passes",
            metavar="NAME",
            help="Run only this pass of `qtool passes`, or the set 'default' or 'integers'; repeatable.",
            autocompletion=_pass_names,
            rich_help_panel=PASSES,
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip",
            metavar="NAME",
            help="Leave this pass out; repeatable.",
            autocompletion=_pass_names,
            rich_help_panel=PASSES,
        ),
    ] = None,
    target: OptionalTargetOption = None,
    data: EvalDataOption = None,
    preprocess: PreprocessOption = None,
    batch_size: BatchSizeOption = None,
    limit: LimitOption = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="SHARE",
            min=0.0,
            help="Largest difference of outputs, relative to the largest value. Default: 1e-5, more in fp16, bf16.",
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not compare the outputs.", rich_help_panel=COMPARISON)
    ] = False,
    io_layout: Annotated[
        Layout | None,
        typer.Option(
            "--io-layout",
            help="Layout of image inputs and outputs.",
            rich_help_panel=PASSES,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change; write nothing.", rich_help_panel=OUTPUT)
    ] = False,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Removes, merges and fuses nodes of a graph.

    Outputs are compared with those before, on real or random inputs.
    """
    from qtool.backends.this_machine import target_named
    from qtool.llm.text_for_model import text_options
    from qtool.workflows.optimize.optimize import OptimizeRequest
    from qtool.workflows.optimize.optimize import optimize as run
    from qtool.workflows.quantize.data_request import DataRequest

    console = Console(json=json, quiet=quiet, debug=debug)
    if no_check and (data is not None or tolerance is not None):
        raise UsageError("--data and --tolerance have no effect with --no-check", fix="drop them, or --no-check")
    text = None if data is None else text_options((model,), None, None)
    request = OptimizeRequest(
        model=model,
        output=output,
        output_dir=output_dir,
        force=force,
        passes=tuple(passes or ()),
        skip=tuple(skip or ()),
        target=None if target is None else target_named(target).scheme.target,
        data=None
        if data is None
        else DataRequest(source=data, preprocess=preprocess, batch_size=batch_size, limit=limit, text=text),
        tolerance=tolerance,
        check=not no_check,
        dry_run=dry_run,
        io_layout=io_layout,
    )
    report = run(request, console.progress())
    if json:
        console.json(_as_json(report))
        return
    _show(console, report)
    if no_check and not dry_run:
        console.warn("the outputs were not compared")


def _show(console: Console, report: OptimizeReport) -> None:
    rows = [(step.name, step.before, step.after, _changes(step.operators)) for step in report.steps]
    if rows:
        console.table("Passes that changed something", ("pass", "nodes before", "after", "by operator"), rows)
    for step in report.steps:
        if step.remark is not None:
            console.say(f"{step.name}: {step.remark}")
    names = sorted({*report.before, *report.after}, key=lambda name: (-report.before[name], name))
    different = [name for name in names if report.before[name] != report.after[name]]
    if different:
        counts = [(name, report.before[name], report.after[name]) for name in different]
        console.table("Operators", ("operator", "before", "after"), counts)
    if report.turned is not None:
        changed = ", ".join((*report.turned.inputs, *report.turned.outputs))
        console.say(f"{report.turned.layout.upper()} now: {changed or 'nothing, every image was'}")
    nodes = f"{sum(report.before.values())} → {sum(report.after.values())} nodes"
    if report.output is None:
        console.say(f"{nodes}; nothing was written")
        return
    console.say(f"wrote {report.output}: {nodes}, {report.bytes_before:,} → {report.bytes_after:,} bytes")
    if report.agreement is not None:
        worst = report.agreement.worst
        console.say(
            f"outputs differ by at most {worst.relative:.1e} of the largest value, on {report.agreement.samples}"
        )
    if report.noise is not None:
        console.say(f"onnxruntime's own graph optimizations change them by {report.noise:.1e}")


def _changes(operators: Mapping[str, int]) -> str:
    changes = [f"{change:+d} {operator}".replace("-", "−", 1) for operator, change in operators.items()]
    return ", ".join(changes) or "shapes, constants or connections only"


def _as_json(report: OptimizeReport) -> dict[str, object]:
    agreement = report.agreement
    return {
        "schema": "qtool.optimize/1",
        "model": str(report.model),
        "output": None if report.output is None else str(report.output),
        "nodes_before": sum(report.before.values()),
        "nodes_after": sum(report.after.values()),
        "operators_before": dict(report.before),
        "operators_after": dict(report.after),
        "passes": [asdict(step) for step in report.steps],
        "turned": None if report.turned is None else asdict(report.turned),
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "largest_difference": None
        if agreement is None
        else {difference.output: difference.relative for difference in agreement.differences},
        "noise": report.noise,
        "compared_on": None if agreement is None else agreement.samples,
    }
