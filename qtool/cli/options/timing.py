"""The options of ``qtool quantize`` that say what time is worth, and what is shown of what stays float for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from qtool.cli.console import Console
from qtool.cli.options.groups import SPEED

if TYPE_CHECKING:
    from qtool.backends.this_machine import ResolvedTarget
    from qtool.manifest import Manifest
    from qtool.workflows.quantize.request import QuantizeReport
    from qtool.workflows.tune.timing import Timing

_MEASURED, _SHIPPED = "measured", "shipped"

MachineProfileOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--machine-profile",
        metavar="FILE",
        help="Kernel times: FILE, 'measured' or 'shipped'.",
        rich_help_panel=SPEED,
    ),
]
SmallestOption: TypeAlias = Annotated[
    bool,
    typer.Option("--smallest", help="Also quantize layers that get no faster.", rich_help_panel=SPEED),
]


def timing_of(machine: ResolvedTarget, profile: str | None, locked: Manifest | None, *, smallest: bool) -> Timing:
    """Returns where times come from: the manifest to repeat, a file, the machine, or what qtool ships.

    Raises:
        InputError: the file, or the manifest, holds no profile.
    """
    from qtool.backends.machine_profile import read_profile
    from qtool.backends.onnxruntime_cpu.shipped_profiles import has_profile, shipped_profile
    from qtool.workflows.tune.timing import Timing, timing_from_json

    recorded = None if locked is None else locked.lock.get("timing")
    if recorded is not None:
        return timing_from_json(recorded, "the manifest")
    if profile == _MEASURED or (profile is None and machine.is_measurable):
        return Timing(for_size=smallest)
    if profile is not None and profile != _SHIPPED:
        return Timing(profile=read_profile(Path(profile)), for_size=smallest)
    target = machine.scheme.target
    return Timing(profile=shipped_profile(target), for_size=smallest or not has_profile(target))


def show_times(console: Console, report: QuantizeReport) -> None:
    """Prints what stays float for speed, and how fast the result is."""
    if report.slow:
        console.say(f"kept in float, where INT8 is no faster: {len(report.slow)} nodes (--smallest quantizes them)")
    speedup = report.speedup
    if speedup is None:
        return
    from qtool.backends.runtimes import runtime_named

    runtime = runtime_named(report.coverage.runtime).title
    console.say(f"{speedup.median:.2f}x as fast as float on this machine, from a few interleaved runs in {runtime}")
    if speedup.high < 1.0:
        console.warn(
            "slower than the float model on this machine: `qtool report` measures it more carefully; use the float "
            "model, or keep more layers in float with --exclude"
        )
