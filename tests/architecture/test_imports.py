"""Which part may know which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

COMMANDS = (
    "convert",
    "merge-lora",
    "inspect",
    "audit",
    "optimize",
    "split",
    "passes",
    "calibrate",
    "sensitivity",
    "quantize",
    "dequantize",
    "report",
    "verify",
    "explain",
    "diff",
    "doctor",
)
HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "openvino", "onnxscript", "numpy", "PIL", "safetensors")


def _imports(module: ast.Module) -> Iterator[str]:
    """Yields the top-level package of every import, those inside functions included; calib and formats are packages."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (_package(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            if node.module == "qtool":
                yield from (_package(f"qtool.{alias.name}") for alias in node.names)
            else:
                yield _package(node.module or "")


def _package(module: str) -> str:
    top, _, rest = module.partition(".")
    inner = rest.partition(".")[0]
    return inner if top == "qtool" and inner in {"calib", "formats"} else top


def _importers(modules: Mapping[str, ast.Module], package: str) -> set[str]:
    return {path for path, module in modules.items() if package in set(_imports(module))}


@pytest.mark.parametrize(("package", "strangers"), [("calib", ("formats", "qtool")), ("formats", ("calib", "qtool"))])
def test_the_lower_packages_know_neither_each_other_nor_the_tool(
    package_modules: Mapping[str, ast.Module], package: str, strangers: tuple[str, ...]
) -> None:
    for stranger in strangers:
        wrong = {path for path in _importers(package_modules, stranger) if path.startswith(f"{package}/")}
        assert not wrong, f"{stranger} is imported by {sorted(wrong)}"


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("onnxruntime", ("qtool/runtime/",)),
        ("openvino", ("qtool/backends/openvino/",)),
        ("rich", ("qtool/cli/console.py",)),
        ("typer", ("qtool/cli/",)),
        (
            "onnx",
            (
                "formats/",
                "qtool/runtime/",
                "qtool/backends/onnxruntime_cpu/",
                "qtool/workflows/convert/opsets.py",
                "qtool/workflows/convert/older_opsets.py",
            ),
        ),
        ("PIL", ("calib/datasets/images.py", "qtool/reporting/charts.py")),
    ],
)
def test_a_library_is_imported_only_where_it_belongs(
    package_modules: Mapping[str, ast.Module], library: str, owners: tuple[str, ...]
) -> None:
    importers = _importers(package_modules, library)
    assert not {path for path in importers if not path.startswith(owners)}


def test_nothing_imports_the_parser_that_typer_brings(all_modules: Mapping[str, ast.Module]) -> None:
    assert not _importers(all_modules, "click")


def test_nothing_runs_code_that_a_file_brings(package_modules: Mapping[str, ast.Module]) -> None:
    wrong = [
        f"{path}:{call.lineno}"
        for path, module in package_modules.items()
        for call in ast.walk(module)
        if isinstance(call, ast.Call) and _may_unpickle(call)
    ]
    # What a person allows is run in one place.
    assert [place.partition(":")[0] for place in wrong] == ["formats/torch/trusted_pickle.py"]


def _may_unpickle(call: ast.Call) -> bool:
    constants = {key.arg: key.value.value for key in call.keywords if isinstance(key.value, ast.Constant)}
    match ast.unparse(call.func):
        case "pickle.load" | "pickle.loads" | "pickle.Unpickler" | "marshal.load" | "marshal.loads" | "shelve.open":
            return True
        case "torch.load":
            return constants.get("weights_only") is not True
        case "np.load" | "numpy.load":
            return constants.get("allow_pickle", False) is not False
        case _:
            return False


def test_the_helps_of_all_commands_import_nothing_heavy(root: Path) -> None:
    script = f"""
import sys
from typer.testing import CliRunner
from qtool.cli.app import app

for arguments in (["--version"], ["--help"], *([name, "--help"] for name in {COMMANDS!r})):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (arguments, result.output)
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["qtool.calib", "qtool.formats", "qtool"])
def test_a_package_imports_nothing_heavy_by_itself(root: Path, package: str) -> None:
    script = f"import sys, {package}\nprint(sorted(set({HEAVY!r}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
