"""What one runtime wants is known in its folder, and nowhere by its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from qtool.backends.registry import BACKENDS
from qtool.backends.targets import PRESETS

_SHARED_FOLDER = "qdq_placement"
_FOLDERS = {entry.partition(":")[0].split(".")[2] for entry in BACKENDS.values()}


def _imported(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_backend_has_a_folder_and_every_folder_is_a_backends(root: Path) -> None:
    folders = {path.parent.name for path in (root / "qtool/backends").glob("*/__init__.py")}
    assert folders == _FOLDERS | {_SHARED_FOLDER}
    assert len(_FOLDERS) == len(BACKENDS)


@pytest.mark.parametrize("folder", sorted({*_FOLDERS, _SHARED_FOLDER}))
def test_a_backend_knows_no_other(package_modules: Mapping[str, ast.Module], folder: str) -> None:
    others = _FOLDERS - {folder}
    wrong = [
        f"{path}: {name}"
        for path, module in package_modules.items()
        if path.startswith(f"qtool/backends/{folder}/")
        for name in _imported(module)
        if name.startswith("qtool.backends.") and name.split(".")[2] in others
    ]
    assert not wrong


def test_nothing_outside_asks_for_a_backend_by_its_name(package_modules: Mapping[str, ast.Module]) -> None:
    names = {*BACKENDS, *PRESETS} - {"x86"}
    wrong = [
        f"{path}:{node.lineno}"
        for path, module in package_modules.items()
        if not path.startswith("qtool/backends/")
        for node in ast.walk(module)
        if _compares_with(node, names)
    ]
    assert not wrong


def _compares_with(node: ast.AST, names: set[str]) -> bool:
    """Whether ``node`` is a comparison, or a case, of one of the names; ``x86`` is a family of processors as well."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
    elif isinstance(node, ast.match_case):
        sides = [node.pattern]
    else:
        return False
    texts = {leaf.value for side in sides for leaf in ast.walk(side) if isinstance(leaf, ast.Constant)}
    return bool(texts & names)


def test_comparisons_with_names_are_found() -> None:
    texts = ("backend == 'qnn'", "'openvino' != name", "name in ('qnn', 'x')", "match b:\n  case 'qnn' | 'y': pass")
    for text in texts:
        assert [node for node in ast.walk(ast.parse(text)) if _compares_with(node, {"qnn", "openvino"})], text
    for text in ("backend = 'qnn'", "backend == name", "preset('qnn')"):
        assert not [node for node in ast.walk(ast.parse(text)) if _compares_with(node, {"qnn", "openvino"})], text
