"""Security audit: determines what opening a model file would do, and fails if it runs code or reaches outside."""

from __future__ import annotations

from pathlib import Path

from qtool.errors import GateError
from qtool.formats.audit import audit
from qtool.formats.findings import FileAudit


def audit_model(path: Path) -> FileAudit:
    """Audits a model file without opening it as a model.

    Raises:
        FormatError: there is no such file, or it is not a known model file.
    """
    return audit(path)


def check_safe(report: FileAudit) -> None:
    """Passes when nothing in the file runs code, reaches outside of its folder or contradicts itself.

    Raises:
        GateError: something does.
    """
    if not report.findings:
        return
    first = report.findings[0]
    more = f", and {len(report.findings) - 1} more" if len(report.findings) > 1 else ""
    raise GateError(
        f"{report.path} is not safe to open: {first.where} {first.what}{more}",
        fix="get the weights as .safetensors, or open it only where you trust who made it",
    )
