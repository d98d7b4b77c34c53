"""What ``make test-oldest`` installs is the oldest that pyproject.toml lets in."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

_REQUIREMENT = re.compile(r"(?P<name>[\w-]+)(\[[\w,]+\])?>=(?P<version>[\d.]+)")
# Its oldest would be downloaded with all of CUDA.
_NEWER = {"torch"}
_TOOLS = {"hypothesis", "pytest", "pytest-xdist"}


@pytest.fixture
def lowest(root: Path) -> dict[str, str]:
    """The lower bounds of what qtool needs, and of what its tests do."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    bounds = {match["name"]: match["version"] for text in wanted if (match := _REQUIREMENT.match(text))}
    needed = {match["name"] for text in project["dependencies"] if (match := _REQUIREMENT.match(text))}
    assert len(needed) == len(project["dependencies"])
    return {name: bound for name, bound in bounds.items() if name in needed | _TOOLS}


def _pinned(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_the_oldest_versions_are_those_that_are_promised(root: Path, lowest: dict[str, str]) -> None:
    pinned, tested = _pinned(root / "constraints-oldest.txt"), _pinned(root / "constraints.txt")
    assert pinned.keys() == lowest.keys()
    assert {name: pinned[name] for name in _NEWER} == {name: tested[name] for name in _NEWER}
    for name in lowest.keys() - _NEWER:
        # 3.6 asks for the first of the 3.6 that still stands.
        parts = lowest[name].split(".")
        assert pinned[name].split(".")[: len(parts)] == parts, name
