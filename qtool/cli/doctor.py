"""``qtool doctor``: what this machine is, and what is slow about it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options.groups import OUTPUT
from qtool.cli.options.shared import DebugOption, ForceOption, JsonOption, QuietOption, ThreadsOption
from qtool.json_values import json_text

if TYPE_CHECKING:
    from qtool.workflows.diagnose.doctor import Diagnosis

_FEATURES = {
    "avx2": "AVX2",
    "avx512": "AVX-512",
    "vnni": "VNNI",
    "amx": "AMX",
    "dot_product": "dot product",
    "matrix_multiply": "i8mm",
}


def doctor(
    machine_profile: Annotated[
        Path | None,
        typer.Option(
            "--machine-profile",
            metavar="FILE",
            help="Write the kernel times of this machine, for `qtool quantize --machine-profile` elsewhere.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    threads: ThreadsOption = 0,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Shows what this machine is, and what INT8 gains on it.

    Versions, processor, threads, providers, and what makes models slow here.
    """
    from qtool.atomic import check_output, staged
    from qtool.workflows.diagnose.doctor import diagnose

    console = Console(json=json, quiet=quiet, debug=debug)
    if machine_profile is not None:
        check_output(machine_profile, force=force)
    found = diagnose(console.progress(), threads=threads)
    if machine_profile is not None:
        with staged(machine_profile) as path:
            path.write_text(json_text(found.profile.as_json()), encoding="utf-8")
    if json:
        console.json({"schema": "qtool.doctor/2", **asdict(found), "profile": found.profile.as_json()})
        return
    console.table("This machine", ("", ""), _rows(found))
    console.table(
        "Layers on integers beside float",
        ("layer", "s8 weights", "u8 weights"),
        [
            (kind.value, f"{speed.floats / speed.signed:.2f}x", f"{speed.floats / speed.unsigned:.2f}x")
            for kind, speed in found.profile.layers.items()
        ],
        "how many times faster, without what stands around them; activations are u8",
    )
    console.table("Versions", ("package", "version"), list(found.versions.items()))
    for remark in found.remarks:
        console.say(f"{remark.problem}\n  {remark.fix}")
    if not found.remarks:
        console.say("no performance problems found")
    if machine_profile is not None:
        console.say(f"wrote {machine_profile}")


def _rows(found: Diagnosis) -> list[tuple[str, object]]:
    features = asdict(found.features)
    told = {name: features[key] for key, name in _FEATURES.items() if features[key] is not None}
    present = ", ".join(f"{name} {'yes' if value else 'no'}" for name, value in told.items())
    memory = found.free_memory_bytes
    return [
        ("system", found.machine.system),
        ("processor", found.machine.processor),
        ("for integers", present or "the system does not tell"),
        ("sums of products", "16 bits, saturating" if found.saturates else "32 bits"),
        ("--target", found.target),
        ("cores", f"{found.machine.cores}, of which {found.usable_cores:g} may be used"),
        ("load", "unknown" if found.load is None else f"{found.load:.1f}"),
        ("memory", "unknown" if memory is None else f"{memory / 1e9:.1f} GB free"),
        ("providers", ", ".join(found.providers)),
    ]
