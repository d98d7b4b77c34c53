"""What every file looks like."""

from __future__ import annotations

import ast
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest

LONGEST_LINES = 350
MEDIAN_FUNCTION_LINES = 10
MOST_FILES = 25
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}


def _definitions(
    body: list[ast.stmt], prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Yields what is public and defined at the top of a module or in a public class of it."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        yield f"{prefix}{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, f"{prefix}{node.name}.")


def test_no_file_grows_out_of_hand(root: Path, all_modules: Mapping[str, ast.Module]) -> None:
    lengths = {path: len((root / path).read_text(encoding="utf-8").splitlines()) for path in all_modules}
    assert not {path: lines for path, lines in lengths.items() if lines > LONGEST_LINES}


def test_functions_are_short(package_modules: Mapping[str, ast.Module]) -> None:
    lengths = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for module in package_modules.values()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert lengths
    assert statistics.median(lengths) <= MEDIAN_FUNCTION_LINES


def test_no_folder_grows_out_of_hand(root: Path) -> None:
    if not (root / ".git").exists():
        pytest.skip("only git tells the project's files from those that runs leave behind")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8", check=True).stdout
    files = [path for path in listed.split("\0") if path and (root / path).exists()]
    assert "pyproject.toml" in files
    folders = Counter(PurePosixPath(path).parent.as_posix() for path in files)
    assert not {folder: count for folder, count in folders.items() if count > MOST_FILES}


def test_what_tests_share_stands_once(all_modules: Mapping[str, ast.Module]) -> None:
    places: dict[str, list[str]] = {}
    for path, module in all_modules.items():
        helpers = (node for node in module.body if isinstance(node, ast.FunctionDef) and path.startswith("tests/"))
        for node in helpers:
            # The parameters of fixtures make them differ, alike as they look.
            if not node.name.startswith("test_") and not node.decorator_list:
                places.setdefault(ast.unparse(node), []).append(f"{path}:{node.lineno}")
    assert places
    assert not [same for same in places.values() if len(same) > 1]


def test_files_are_named_after_their_content(all_modules: Mapping[str, ast.Module]) -> None:
    assert not [path for path in all_modules if Path(path).stem in EMPTY_NAMES]


def test_test_files_have_names_of_their_own(all_modules: Mapping[str, ast.Module]) -> None:
    tests = [Path(path).name for path in all_modules if Path(path).name.startswith("test_")]
    assert sorted(tests) == sorted(set(tests))


def test_every_file_says_what_it_is_for(all_modules: Mapping[str, ast.Module]) -> None:
    # The names of tests are sentences already.
    sources = {path: module for path, module in all_modules.items() if not path.startswith("tests/")}
    assert not [path for path, module in sources.items() if not ast.get_docstring(module)]


def test_everything_public_is_documented(package_modules: Mapping[str, ast.Module]) -> None:
    bare = [
        f"{path}: {name}"
        for path, module in package_modules.items()
        for name, node in _definitions(module.body, "")
        if not ast.get_docstring(node)
    ]
    assert not bare


def test_packages_print_nothing(package_modules: Mapping[str, ast.Module]) -> None:
    printing = [
        f"{path}:{node.lineno}"
        for path, module in package_modules.items()
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing


def test_no_work_is_left_for_later(root: Path, package_modules: Mapping[str, ast.Module]) -> None:
    words = ("TO" + "DO", "FIX" + "ME", "HA" + "CK")
    unfinished = [
        f"{path}: {word}"
        for path in package_modules
        for word in words
        if word in (root / path).read_text(encoding="utf-8")
    ]
    assert not unfinished


@pytest.mark.parametrize("package", ["calib", "formats", "qtool"])
def test_a_package_says_that_it_is_typed(root: Path, package: str) -> None:
    assert (root / package / "py.typed").is_file()


def test_every_folder_of_a_package_is_importable(root: Path, package_modules: Mapping[str, ast.Module]) -> None:
    folders = {(root / path).parent for path in package_modules}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]
