"""Modules know each other in one direction only."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import networkx as nx
import pytest


def _dotted(path: str) -> str:
    """Returns the name that a file is imported by; calib and formats are linked to from qtool."""
    parts = PurePosixPath(path).with_suffix("").parts
    whole = parts if parts[0] == "qtool" else ("qtool", *parts)
    return ".".join(whole[:-1] if whole[-1] == "__init__" else whole)


def _named(module: ast.Module) -> Iterator[str]:
    """Yields all that imports name, wherever they stand: in functions and for type checkers only, too."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.fixture(scope="module")
def imports(package_modules: Mapping[str, ast.Module]) -> nx.DiGraph:
    """Which module imports which."""
    modules = {_dotted(path): module for path, module in package_modules.items()}
    graph = nx.DiGraph()
    graph.add_nodes_from(modules)
    for name, module in modules.items():
        graph.add_edges_from((name, other) for other in _named(module) if other in modules and other != name)
    return graph


def test_every_module_takes_part(imports: nx.DiGraph) -> None:
    assert {name.count(".") > 0 for name in imports} == {True, False}
    assert imports.has_edge("qtool.calib.ranges.min_max", "qtool.calib.affine")
    assert imports.has_edge("qtool", "qtool.workflows.quantize.quantize")


def test_no_imports_go_in_a_circle(imports: nx.DiGraph) -> None:
    circles = [sorted(members) for members in nx.strongly_connected_components(imports) if len(members) > 1]
    assert not circles
