"""``qtool audit``: what opening a model file would run and reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtool.cli.console import Console
from qtool.cli.options.model import model_path
from qtool.cli.options.shared import DebugOption, JsonOption, OptionalModelArgument, QuietOption

if TYPE_CHECKING:
    from qtool.formats.findings import FileAudit


def audit(
    model: OptionalModelArgument = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Lists what opening a file would run, without opening it.

    Exits with 1 if something in it could run code or reach outside of its folder.
    """
    from qtool.workflows.diagnose.audit import audit_model, check_safe

    console = Console(json=json, quiet=quiet, debug=debug)
    report = audit_model(model_path(model))
    if json:
        console.json(_as_json(report))
    else:
        _show(console, report)
    check_safe(report)


def _show(console: Console, report: FileAudit) -> None:
    rows: list[tuple[str, object]] = [("kind", report.kind), ("findings", len(report.findings) or "none")]
    rows += [("imports", ", ".join(report.imports))] if report.imports else []
    rows += [("calls", call) for call in report.calls]
    rows += [("refers to", name) for name in report.files]
    console.table(str(report.path), ("", ""), rows)
    if report.findings:
        console.table(
            "Reasons not to open it",
            ("risk", "where", "what"),
            [(finding.risk.value, finding.where, finding.what) for finding in report.findings],
        )


def _as_json(report: FileAudit) -> dict[str, object]:
    return {
        "schema": "qtool.audit/1",
        "path": str(report.path),
        "kind": report.kind,
        "safe": not report.findings,
        "findings": [
            {"risk": finding.risk.value, "where": finding.where, "what": finding.what} for finding in report.findings
        ],
        "imports": list(report.imports),
        "calls": list(report.calls),
        "files": list(report.files),
    }
