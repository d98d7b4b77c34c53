"""What ``qtool inspect`` says about adapters."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from qtool.cli.console import Console


def show_adapter(console: Console, path: Path, *, json: bool) -> None:
    """Reads the adapter in ``path`` and prints what is in it.

    Raises:
        FormatError: it is damaged.
        InputError: it is a pickle, incomplete, or of a kind that cannot be merged.
    """
    from qtool.workflows.diagnose.inspect_adapter import inspect_adapter

    report = inspect_adapter(path)
    if json:
        console.json({**asdict(report), "path": str(report.path)})
        return
    rows: list[tuple[str, object]] = [("kind", f"{report.kind} adapter")]
    rows += [("trained on", report.base_model)] if report.base_model else []
    rows += [("rank", report.rank)] if report.rank else []
    rows += [("alpha", f"{report.alpha:g}")] if report.alpha is not None else []
    rows.append(("parameters", f"{report.parameters:,} for {len(report.targets)} modules"))
    rows += [("replaces", ", ".join(report.replaced))] if report.replaced else []
    console.table(str(report.path), ("", ""), rows)
    console.table(
        "Modules",
        ("module", "rank", "scale", "tensors"),
        [
            (
                target.module,
                "" if target.rank is None else target.rank,
                "" if target.scale is None else f"{target.scale:g}",
                ", ".join(f"{role} {'x'.join(map(str, shape))}" for role, shape in target.parts.items()),
            )
            for target in report.targets
        ],
    )
