"""``qtool verify``: how much of a model really runs on integers, whether it fits its target, and runtime upgrades."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options.goal import share_of
from qtool.cli.options.groups import COMPARISON, GATES, MEASUREMENTS
from qtool.cli.options.shared import (
    BatchSizeOption,
    DebugOption,
    EvalDataOption,
    JsonOption,
    LimitOption,
    ModelArgument,
    OptionalTargetOption,
    PreprocessOption,
    QuietOption,
    ThreadsOption,
)
from qtool.errors import UsageError

if TYPE_CHECKING:
    from qtool.workflows.diagnose.runtime_versions import VersionsRequest


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
    fail_if_changed: Annotated[
        bool,
        typer.Option(
            "--fail-if-changed",
            help="Exit 1 if a version of --onnxruntime does not load it, gives other values, or is worse.",
            rich_help_panel=GATES,
        ),
    ] = False,
    target: OptionalTargetOption = None,
    onnxruntime: Annotated[
        str | None,
        typer.Option(
            "--onnxruntime",
            metavar="VERSIONS",
            help="Compare versions of onnxruntime with this one: 1.22.1,1.27.0.",
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option(
            "--python", metavar="FILE", help="Python to run them in. Default: this one.", rich_help_panel=COMPARISON
        ),
    ] = None,
    keep_environments: Annotated[
        Path | None,
        typer.Option(
            "--keep-environments",
            metavar="FOLDER",
            help="Keep what is installed for them here, and use it again.",
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    data: EvalDataOption = None,
    preprocess: PreprocessOption = None,
    batch_size: BatchSizeOption = None,
    limit: LimitOption = None,
    threads: ThreadsOption = 0,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds", metavar="N", min=1, help="Rounds of timing. Default: 25.", rich_help_panel=MEASUREMENTS
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Shows which nodes a runtime really runs on integers.

    The runtime is onnxruntime, or that of the target where it is installed. A target is also checked: exits with 1
    if it does not take the model as it is. Other versions are compared: whether they load it, values, kernels, speed.
    """
    from qtool.backends.this_machine import target_named
    from qtool.cli.output.quantize import coverage_as_json, show_coverage
    from qtool.cli.output.target import show_target, target_as_json
    from qtool.cli.output.versions import show_versions, versions_as_json
    from qtool.workflows.diagnose.runtime_versions import check_coverage_of_versions, check_versions, compare_versions
    from qtool.workflows.diagnose.verify import check_coverage
    from qtool.workflows.diagnose.verify import verify as run
    from qtool.workflows.quantize.target_check import check_gate, check_target

    console = Console(json=json, quiet=quiet, debug=debug)
    minimum = None if min_coverage is None else share_of("--min-coverage", min_coverage, example="90%")
    machine = None if target is None else target_named(target).scheme
    upgrade = _upgrade(
        model,
        onnxruntime,
        python=python,
        environments=keep_environments,
        data=data,
        preprocess=preprocess,
        batch_size=batch_size,
        limit=limit,
        threads=threads,
        rounds=rounds,
        gate=fail_if_changed,
    )
    report = run(model, console.progress(), machine)
    fit = None if machine is None else check_target(model, machine)
    others = None if upgrade is None else compare_versions(upgrade, console.progress())
    if json:
        found: dict[str, object] = {
            "schema": "qtool.verify/1",
            "model": str(report.model),
            "onnxruntime": report.versions["onnxruntime"],
            "versions": dict(report.versions),
            **coverage_as_json(report.coverage),
            "overflowing_layers": list(report.overflowing_layers),
        }
        found |= {} if fit is None else target_as_json(fit)
        console.json(found | ({} if others is None else versions_as_json(others)))
    else:
        show_coverage(console, report.coverage)
        if fit is not None:
            show_target(console, fit)
        if others is not None:
            show_versions(console, others)
    if minimum is not None:
        check_coverage(report, minimum)
        if others is not None:
            check_coverage_of_versions(others, minimum)
    if fit is not None:
        check_gate(fit)
    if others is not None and fail_if_changed:
        check_versions(others)


def _upgrade(
    model: Path,
    versions: str | None,
    *,
    python: Path | None,
    environments: Path | None,
    data: str | None,
    preprocess: str | None,
    batch_size: int | None,
    limit: int | None,
    threads: int,
    rounds: int | None,
    gate: bool,
) -> VersionsRequest | None:
    """Returns the comparison of versions that is asked for, if any.

    Raises:
        UsageError: an option has nothing to do, or a version is none.
    """
    if versions is None:
        given = {
            "--fail-if-changed": gate,
            "--python": python,
            "--keep-environments": environments,
            "--data": data,
            "--preprocess": preprocess,
            "--batch-size": batch_size,
            "--limit": limit,
            "--threads": threads,
            "--rounds": rounds,
        }
        for option, value in given.items():
            if value:
                raise UsageError(f"{option} belongs to --onnxruntime", fix="list the versions: --onnxruntime 1.22.1")
        return None
    if data is None and (preprocess or batch_size or limit):
        raise UsageError("--preprocess, --batch-size and --limit belong to --data", fix="give samples with --data")
    from qtool.llm.text_for_model import text_options
    from qtool.runtime.environments import checked_versions
    from qtool.workflows.diagnose.runtime_versions import USUAL_ROUNDS, VersionsRequest
    from qtool.workflows.quantize.data_request import data_request

    text = None if data is None else text_options((model,), None, None)
    return VersionsRequest(
        model=model,
        versions=checked_versions(versions),
        data=None
        if data is None
        else data_request((data,), preprocess=preprocess, batch_size=batch_size, limit=limit, text=text),
        python=python,
        environments=environments,
        threads=threads,
        rounds=rounds or USUAL_ROUNDS,
    )
