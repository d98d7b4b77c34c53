"""The project's root and a folder that looks like a clone, to run commands in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

Job: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def quickstart() -> str:
    return (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def ci_guide() -> str:
    return (ROOT / "docs" / "guides" / "reports-and-ci.md").read_text(encoding="utf-8")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the samples in it and nothing else."""
    shutil.copytree(ROOT / "samples", tmp_path / "samples", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.fixture
def python(clone: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs this interpreter in ``clone``, as a terminal that speaks UTF-8 would."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        surroundings = {**os.environ, "PYTHONUTF8": "1", "NO_COLOR": "1"}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=clone,
            env=surroundings,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    return run


@pytest.fixture
def job(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Runs a command line of a CI job in a clone, where `qtool` is this interpreter's."""
    programs = tmp_path_factory.mktemp("bin")
    qtool = programs / "qtool"
    qtool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qtool "$@"\n')
    qtool.chmod(0o755)

    def run(line: str, **surroundings: str) -> subprocess.CompletedProcess[str]:
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["sh", "-c", line],
            cwd=clone,
            env={**os.environ, "PATH": path, "PYTHONUTF8": "1", **surroundings},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    return run
