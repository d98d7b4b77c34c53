"""``qtool doctor``: what this machine is, and what is slow about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qtool.cli.console import Console
from qtool.cli.options import DebugOption, JsonOption, QuietOption

_FEATURES = {
    "avx2": "AVX2",
    "avx512": "AVX512",
    "vnni": "VNNI",
    "amx": "AMX",
    "dot_product": "dot product",
    "matrix_multiply": "i8mm",
}


def doctor(json: JsonOption = False, quiet: QuietOption = False, debug: DebugOption = False) -> None:
    """Shows versions, processor, threads and providers, and what makes models slow on this machine."""
    from qtool.workflows.doctor import diagnose

    console = Console(json=json, quiet=quiet, debug=debug)
    found = diagnose()
    if json:
        console.json(
            {
                "schema": "qtool.doctor/1",
                **asdict(found),
                "speedup": found.speed.speedup,
            }
        )
        return
    console.table("This machine", ("", ""), _rows(found))
    console.table("Versions", ("package", "version"), list(found.versions.items()))
    for remark in found.remarks:
        console.say(f"{remark.problem}\n  {remark.fix}")
    if not found.remarks:
        console.say("nothing is slow about it")


def _rows(found: Any) -> list[tuple[str, object]]:
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
        (
            "product of matrices",
            f"{found.speed.float_seconds * 1e3:.2f} ms in float, {found.speed.integer_seconds * 1e3:.2f} ms in "
            f"integers, {found.speed.speedup:.2f}x",
        ),
    ]
