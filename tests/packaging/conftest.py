"""What of the repository becomes a distribution, apart from the repository."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_LEFT_OUT = shutil.ignore_patterns("__pycache__")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what distributions are built from, links as links: builders write beside what they build."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder)
    for name in ("qtool", "calib", "formats"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=_LEFT_OUT)
    return folder
