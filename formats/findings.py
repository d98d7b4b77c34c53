"""What an audit finds in a model file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from qtool.formats.containers.pickle_globals import Meaning
from qtool.formats.containers.pickle_scan import PickleScan


class Risk(StrEnum):
    """The risk of opening the file."""

    RUNS_CODE = "runs code"
    REACHES_OUTSIDE = "reaches outside"
    INCONSISTENT = "does not add up"


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason not to open a file.

    Attributes:
        risk: what could happen.
        where: the part of the file.
        what: the reason in words.
        imported: the name that a pickle imports, where that is the reason.
    """

    risk: Risk
    where: str
    what: str
    imported: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileAudit:
    """The effects of opening a file.

    Attributes:
        path: the file.
        kind: what it is, in words.
        findings: reasons not to open it; none where it is safe.
        imports: every name that pickles in it import, the harmless ones too.
        calls: the calls of these pickles, except for those that make tensors.
        files: other files that it refers to.
    """

    path: Path
    kind: str
    findings: tuple[Finding, ...]
    imports: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


@dataclass(slots=True)
class AuditNotes:
    """Collects findings of an audit.

    Attributes:
        findings: reasons not to open the file.
        imports: names that its pickles import, with what that means, each once.
        calls: what its pickles call.
        files: other files that it refers to.
    """

    findings: list[Finding] = field(default_factory=list)
    imports: dict[str, Meaning] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def add(self, risk: Risk, where: str, what: str) -> None:
        """Notes one finding."""
        self.findings.append(Finding(risk, where, what))

    def add_pickle(self, where: str, scan: PickleScan, *, harmless: Iterable[str] = ()) -> None:
        """Notes what a pickle would do; imports whose names begin with one of ``harmless`` are not findings."""
        self.imports.update(scan.imports)
        self.calls.extend(scan.calls)
        begins = tuple(harmless)
        for name in scan.foreign:
            if not (begins and name.startswith(begins)):
                what = f"imports {name}, which {scan.imports[name]}"
                self.findings.append(Finding(Risk.RUNS_CODE, where, what, name))
        if scan.problem is not None:
            self.add(Risk.INCONSISTENT, where, f"is a damaged pickle: {scan.problem}")

    def audit(self, path: Path, kind: str) -> FileAudit:
        """Returns the findings as the audit of ``path``."""
        return FileAudit(
            path=path,
            kind=kind,
            findings=tuple(self.findings),
            imports=tuple(self.imports),
            calls=tuple(self.calls),
            files=tuple(dict.fromkeys(self.files)),
        )
