"""The source files that the rules of the house are checked on."""

from __future__ import annotations

import ast
import gc
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("calib/", "formats/", "qtool/")
OTHERS = ("samples/", "benchmarks/", "tests/")


@pytest.fixture(scope="session")
def package_modules(all_modules: Mapping[str, ast.Module]) -> Mapping[str, ast.Module]:
    """Every file of the three packages, by its path from the root."""
    return {path: module for path, module in all_modules.items() if path.startswith(PACKAGES)}


@pytest.fixture(scope="session")
def all_modules() -> Mapping[str, ast.Module]:
    """Every Python file of the project, by its path from the root.

    They are millions of objects, which every garbage collection of the session would go through.
    """
    gc.disable()
    try:
        return _parsed((*PACKAGES, *OTHERS))
    finally:
        gc.freeze()
        gc.enable()


def _parsed(folders: tuple[str, ...]) -> Mapping[str, ast.Module]:
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in files}
