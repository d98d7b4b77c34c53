"""Every command that the README, the quickstart and the guides show runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.docs.conftest import ROOT, code_blocks, commands_in, demo_block, pages, run_command

_TAUGHT = [path for path in pages() if path.parent.name == "guides" or path.stem in ("README", "quickstart")]


def _commands(path: Path) -> list[tuple[str, int]]:
    return [found for _, block in code_blocks(path.read_text(encoding="utf-8")) for found in commands_in(block)]


def _cases() -> list[Any]:
    """The pages with commands; together they take long."""
    return [
        pytest.param(path, id=path.relative_to(ROOT).as_posix(), marks=(pytest.mark.slow,) * (path.stem != "README"))
        for path in _TAUGHT
        if _commands(path)
    ]


@pytest.mark.parametrize("path", _cases())
def test_the_commands_of_a_page_run_as_they_stand(path: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    for language, text in code_blocks(path.read_text(encoding="utf-8")):
        if language == "toml":
            (clone / "qtool.toml").write_text(text, encoding="utf-8")
        # What the demo runs has been run for the clone, and by the tests of the samples.
        for line, expected in commands_in(text) if text != demo_block() else []:
            run_command(line, expected)
    assert {file.name for file in clone.iterdir()} <= {"samples", "demo-output", "qtool.toml"}


def test_every_command_is_shown_somewhere(root: Path) -> None:
    shown = {line.split()[1] for path in _TAUGHT for line, _ in _commands(path)}
    assert shown == {path.stem for path in (root / "docs" / "commands").glob("*.md")} - {"index"}


@pytest.mark.parametrize("path", _TAUGHT, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_command_stands_outside_of_the_code_that_is_run(path: Path) -> None:
    shown = re.findall(r"^\s*\$ (qtool .*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(shown) <= {line for line, _ in _commands(path)}
