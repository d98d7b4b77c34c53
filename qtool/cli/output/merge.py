"""What ``qtool merge-lora`` prints."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from qtool.cli.console import Console

if TYPE_CHECKING:
    from qtool.lora.onnx.requantizing import Requantized
    from qtool.workflows.lora.request import MergeReport


def show_merge(console: Console, report: MergeReport) -> None:
    """Prints a table of the tensors that changed, and one of where everything is."""
    in_graph = any(target.places for target in report.targets)
    integers = any(target.integers for target in report.targets)
    console.table(
        "Changed tensors" if report.output is not None else "Tensors that would change",
        ("tensor", "kind", "rank", "scale", "change", "rounding")
        + (("in the graph",) if in_graph else ())
        + (("integers",) if integers else ()),
        [
            (
                target.weight,
                ", ".join(target.kinds),
                ", ".join("" if rank is None else str(rank) for rank in target.ranks),
                ", ".join(f"{scale:g}" for scale in target.scales),
                _share(target.relative_change),
                f"{target.rounding_error:.1e}",
                *((", ".join(target.places),) if in_graph else ()),
                *((_integers(target.integers),) if integers else ()),
            )
            for target in report.targets
        ],
        caption="change and rounding: norms of what was added and of what the last rounding cut off, "
        "over the norm of the tensor",
    )
    rows: list[tuple[str, object]] = [("base", f"{report.base} ({report.base_kind})")]
    for source, trained_on in zip(report.adapters, report.base_models, strict=True):
        rows.append(("adapter", f"{source.path}" + ("" if trained_on is None else f" (trained on {trained_on})")))
    rows.append(("tensors", f"{len(report.targets)} changed, {len(report.untouched)} unchanged"))
    if report.untied:
        rows.append(("untied", f"{', '.join(report.untied)}: no longer the same tensor as another one of the base"))
    if report.ranges:
        most = max(report.ranges, key=lambda found: found.growth)
        count = "a range" if len(report.ranges) == 1 else f"{len(report.ranges)} ranges"
        rows.append(("activations", f"{count} recalibrated, up to ×{most.growth:.3g} ({most.tensor})"))
    if report.unmerged:
        worst = max(report.targets, key=lambda target: target.unmerge_error)
        rows.append(("restored", f"up to rounding, at most {worst.unmerge_error:.1e} of the norm ({worst.weight})"))
    if report.output is not None:
        rows.append(("to", f"{report.output} ({report.output_bytes:,} bytes)"))
        rows += [("adapter file", file) for file in report.adapter_files]
    console.table("Merged" if report.output is not None else "Nothing was written", ("", ""), rows)


def _share(value: float) -> str:
    return "from zero" if math.isinf(value) else f"{value:.2%}"


def _integers(found: Requantized | None) -> str:
    if found is None:
        return ""
    parts = [f"{found.changed:.1%} changed"]
    if (found.smallest_factor, found.largest_factor) != (1.0, 1.0):
        parts.append(f"scales ×{found.smallest_factor:.3g} to ×{found.largest_factor:.3g}")
    parts += [f"{found.clipped:.2%} clipped"] if found.clipped else []
    return ", ".join(parts)


def merge_as_json(report: MergeReport) -> dict[str, object]:
    """Returns the report in the form of ``--json``."""
    return {
        "schema": "qtool.merge-lora/1",
        "base": str(report.base),
        "base_kind": report.base_kind,
        "adapters": [
            {"path": str(source.path), "weight": source.weight, "base_model": trained_on}
            for source, trained_on in zip(report.adapters, report.base_models, strict=True)
        ],
        "output": None if report.output is None else str(report.output),
        "output_bytes": report.output_bytes,
        "targets": [
            {
                "weight": target.weight,
                "kinds": list(target.kinds),
                "ranks": list(target.ranks),
                "scales": list(target.scales),
                "relative_change": target.relative_change,
                "rounding_error": target.rounding_error,
                "places": list(target.places),
                "unmerge_error": target.unmerge_error if report.unmerged else None,
                "integers": None if target.integers is None else asdict(target.integers),
            }
            for target in report.targets
        ],
        "untouched": len(report.untouched),
        "untouched_tensors": list(report.untouched),
        "unmerged": report.unmerged,
        "untied": list(report.untied),
        "ranges": [
            {
                "tensor": found.tensor,
                "before": [found.before.low, found.before.high],
                "after": [found.after.low, found.after.high],
                "growth": found.growth,
            }
            for found in report.ranges
        ],
        "adapter_files": [str(file) for file in report.adapter_files],
    }
