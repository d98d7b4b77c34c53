"""The user's trust in a file, checked before the file is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qtool.formats.containers.pickle_globals import Meaning
from qtool.formats.errors import FormatError
from qtool.formats.findings import AuditNotes, Finding, Risk

_LONGEST_LIST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What a file may do.

    Attributes:
        pickles: whether its pickles may import and call anything.
        names: classes and functions, as ``pkg.Class``, that its pickles may import and call.
    """

    pickles: bool = False
    names: frozenset[str] = frozenset()


NO_TRUST = Trust()


def check_trusted(notes: AuditNotes, path: Path, trust: Trust) -> None:
    """Passes when an audit of ``path`` found nothing but what ``trust`` allows.

    Raises:
        FormatError: it found more; nothing of the file has been run.
    """
    refused = [finding for finding in notes.findings if not _allowed(finding, notes, trust)]
    imports = [finding.imported for finding in refused if finding.imported is not None]
    attacks = [name for name in imports if notes.imports[name] is Meaning.ATTACK]
    if attacks:
        raise FormatError(
            f"{path} would run {_listed(attacks)} when it is opened, as an attack does; it was not opened",
            fix="do not use this file; get the weights from where you trust them",
        )
    if imports:
        raise _unknown_objects(path, imports)
    for finding in refused:
        if finding.risk is Risk.INCONSISTENT:
            raise FormatError(
                f"{path} is a damaged torch checkpoint: {finding.where} {finding.what}",
                fix="save or download it again",
            )
        raise FormatError(
            f"{path} is not safe to open: {finding.where} {finding.what}",
            fix="use it only where you trust who made it, with --trust-pickle",
        )


def _allowed(finding: Finding, notes: AuditNotes, trust: Trust) -> bool:
    if finding.risk is not Risk.RUNS_CODE:
        return False
    if finding.imported is None or trust.pickles:
        return trust.pickles
    return finding.imported in trust.names and notes.imports[finding.imported] is not Meaning.ATTACK


def _unknown_objects(path: Path, names: list[str]) -> FormatError:
    if any(name.startswith(("torch.nn.modules.", "__main__.")) for name in names):
        allow = "open it with --trust-pickle"
    else:
        allow = f"allow them: {' '.join(f'--allow-global {name}' for name in names[:_LONGEST_LIST])}"
    return FormatError(
        f"{path} holds Python objects, not only tensors ({_listed(names)}), and opening those runs their code",
        fix=f"where you trust the file, {allow}; or torch.save its state_dict() alone, and name what builds the module "
        "with --model",
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LONGEST_LIST} more" if len(names) > _LONGEST_LIST else ""
    return ", ".join(names[:_LONGEST_LIST]) + more
