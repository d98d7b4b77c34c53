"""What is built installs one package that does the demo's work without the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from qtool import __version__

pytestmark = pytest.mark.slow

_BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, "build_" + sys.argv[1])(sys.argv[2]))
"""
_TOOLS = ("setuptools", "_distutils_hack")
_ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
_SITE_PACKAGES = Path(sysconfig.get_path("purelib"))


@dataclass(frozen=True)
class Installed:
    """A virtual environment that qtool was installed in."""

    python: Path
    site_packages: Path
    before: frozenset[str]

    @property
    def gained(self) -> set[str]:
        return {path.name for path in self.site_packages.iterdir()} - self.before


@pytest.fixture
def build(sources: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Builds a wheel or an sdist, as pip would ask the build backend to."""

    def call(kind: str) -> Path:
        target = tmp_path / "built"
        target.mkdir()
        _run(sys.executable, "-c", _BUILD, kind, target, cwd=sources)
        (built,) = target.iterdir()
        return built

    return call


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., Installed]:
    """Installs a distribution, and nothing that it needs, in an empty environment of its own."""

    def call(*distribution: object) -> Installed:
        folder = tmp_path / "environment"
        _run(sys.executable, "-m", "venv", folder, cwd=tmp_path)
        python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        paths = json.loads(_run(python, "-c", "import json, sysconfig; print(json.dumps(sysconfig.get_paths()))"))
        site_packages = Path(paths["purelib"])
        before = frozenset(path.name for path in site_packages.iterdir())
        options = ("--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir", "--quiet")
        _run(python, "-m", "pip", "install", *options, *distribution, more={"PYTHONPATH": _build_tools(tmp_path)})
        return Installed(python, site_packages, before)

    return call


def _build_tools(folder: Path) -> str:
    """Returns a folder with what builds an sdist and nothing else of this environment."""
    tools = folder / "build-tools"
    tools.mkdir()
    for name in _TOOLS:
        shutil.copytree(_SITE_PACKAGES / name, tools / name)
    return str(tools)


def _see_dependencies(installed: Installed) -> None:
    """Adds this environment's packages; files that put further folders on the path count only in folders of sites."""
    (installed.site_packages / "dependencies.pth").write_text(f"{_SITE_PACKAGES}\n", encoding="utf-8")


def _run(*arguments: object, cwd: Path | None = None, more: dict[str, str] | None = None) -> str:
    result = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env={**_ENVIRONMENT, "PYTHONUTF8": "1", "NO_COLOR": "1", **(more or {})},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, f"{arguments}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def _run_the_demo(installed: Installed, root: Path, folder: Path) -> None:
    """Runs the demo's commands and `verify` on copied samples, in a folder that knows nothing of the repository."""
    folder.mkdir()
    (folder / "samples").mkdir()
    for name in ("01_main_job.py", "mnist_cnn.py", "mnist_cnn.pth", "digits_calib.npz", "digits_eval.npz"):
        shutil.copy2(root / "samples" / name, folder / "samples")
    shown = _run(installed.python, "samples/01_main_job.py", "made", cwd=folder)
    assert [line.split()[2] for line in shown.splitlines() if line.startswith("$ qtool ")] == [
        "convert",
        "calibrate",
        "quantize",
        "report",
    ]
    command = installed.python.with_name("qtool")
    models = (folder / "made" / "mnist_cnn.onnx", folder / "made" / "mnist_cnn.int8.onnx")
    figures = json.loads(
        _run(command, "report", *models, "--data", "samples/digits_eval.npz", "--no-latency", "--json", cwd=folder)
    )["figures"]
    assert figures["top1_float"] > 98
    assert figures["size_ratio"] < 0.4
    verified = json.loads(_run(command, "verify", models[1], "--json", cwd=folder))
    assert verified["integer_nodes"] > 0


def _where_qtool_is(installed: Installed, folder: Path) -> Path:
    return Path(_run(installed.python, "-c", "import qtool.calib; print(qtool.__file__)", cwd=folder).strip())


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_distribution_does_the_demo_away_from_the_repository(
    kind: str,
    build: Callable[[str], Path],
    install: Callable[..., Installed],
    root: Path,
    tmp_path: Path,
) -> None:
    installed = install(build(kind))
    assert installed.gained == {"qtool", f"qtool_onnx-{__version__}.dist-info"}
    _see_dependencies(installed)
    assert _where_qtool_is(installed, tmp_path) == installed.site_packages / "qtool" / "__init__.py"
    _run_the_demo(installed, root, tmp_path / "elsewhere")


def test_an_editable_install_leads_to_the_sources(
    install: Callable[..., Installed], sources: Path, tmp_path: Path
) -> None:
    installed = install("--editable", sources)
    assert {name for name in installed.gained if not name.startswith("__editable__")} <= {
        "__pycache__",
        f"qtool_onnx-{__version__}.dist-info",
    }
    _see_dependencies(installed)
    assert _where_qtool_is(installed, tmp_path) == sources / "qtool" / "__init__.py"
    assert "convert" in _run(installed.python.with_name("qtool"), "--help", cwd=tmp_path)
