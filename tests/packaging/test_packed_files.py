"""One import package is packed, with all that it reads at run time."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from setuptools import Distribution
from setuptools.command.build_py import build_py


@pytest.fixture
def builder(sources: Path, monkeypatch: pytest.MonkeyPatch) -> build_py:
    """The step of a build that collects modules and data files, told what pyproject.toml says."""
    monkeypatch.chdir(sources)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files()
    # A manifest of the version control system would be written first.
    distribution.include_package_data = False
    command: build_py = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    return command


def test_only_one_import_package_is_packed(builder: build_py, root: Path) -> None:
    packages = set(builder.packages)
    assert {name.partition(".")[0] for name in packages} == {"qtool"}
    folders = {path.rpartition("/")[0] for path in _shipped(root) if path.endswith("/__init__.py")}
    assert packages == {folder.replace("/", ".") for folder in folders}
    assert {"qtool.calib", "qtool.formats"} < packages


def test_every_module_and_data_file_is_packed(builder: build_py, root: Path) -> None:
    modules = {Path(path).as_posix() for _, _, path in builder.find_all_modules()}
    data = {(Path(source) / name).as_posix() for _, source, _, names in builder.data_files for name in names}
    assert modules | data == set(_shipped(root))
    assert [path for path in data if path.endswith(".json")]


def _shipped(root: Path) -> list[str]:
    """Every file of the three folders that is no leftover of a run, by where it stands in the one package."""
    found = []
    for top, prefix in (("qtool", "qtool"), ("calib", "qtool/calib"), ("formats", "qtool/formats")):
        files = (path for path in (root / top).rglob("*") if path.is_file() and path.suffix != ".pyc")
        found += [f"{prefix}/{path.relative_to(root / top).as_posix()}" for path in files]
    return found


def test_the_distribution_has_the_name_that_messages_say(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "qtool-onnx"
    assert list(project["scripts"]) == ["qtool"]
