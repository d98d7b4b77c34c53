"""The examples of docs/extending.md, put in place as its titles say, and taken away again."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
_BLOCK = re.compile(r'^```python title="(?P<path>[^"]+)"\n(?P<text>.*?)^```$', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Registry:
    """The mapping of one section's last block, in the file of its title."""

    module: str
    mapping: str


REGISTRIES = {
    "A range method": Registry("qtool.calib.ranges", "RANGE_METHODS"),
    "A graph pass": Registry("qtool.passes.registry", "PASSES"),
    "A weight algorithm": Registry("qtool.weights.registry", "WEIGHT_ALGORITHMS"),
    "A format": Registry("qtool.formats.registry", "SOURCES"),
    "A backend": Registry("qtool.backends.registry", "BACKENDS"),
}


def blocks_of(title: str) -> list[tuple[str, str]]:
    """Returns the code of one section of the page as (path, text), the entry of the registry last."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return [(found["path"], found["text"]) for found in _BLOCK.finditer(section)]


def module_of(path: str) -> str:
    """Returns the name that a file of the repository is imported by."""
    parts = Path(path).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "qtool" else ("qtool", *parts))


@pytest.fixture
def extend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Puts a section's files where packages find them and its entry into the registry; returns the entry's name."""
    known = set(sys.modules)

    def call(title: str) -> str:
        *files, (registry_path, entry) = blocks_of(title)
        folder = tmp_path / "extension"
        for path, text in files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        outermost = Path(files[0][0]).parent
        if files[0][0].endswith("__init__.py"):
            outermost = outermost.parent
        package = importlib.import_module(module_of(f"{outermost.as_posix()}/__init__.py"))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder / outermost)])
        registry = REGISTRIES[title]
        module = importlib.import_module(registry.module)
        assert module_of(registry_path) == registry.module
        added: dict[str, Any] = eval(f"{{{entry}}}", vars(module))
        (name,) = added
        monkeypatch.setitem(getattr(module, registry.mapping), name, added[name])
        return name

    yield call
    for name in sorted(set(sys.modules) - known, reverse=True):
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            parent, _, own = name.rpartition(".")
            vars(sys.modules[parent]).pop(own, None)
            del sys.modules[name]
