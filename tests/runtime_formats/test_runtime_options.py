"""Options that make no sense for another runtime's format, and libraries that are missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from qtool.workflows.convert.target_format import TargetFormat

_PROGRAMS = [target for target in TargetFormat if target.load().holds == "program"]


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides every package."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)


@pytest.mark.parametrize("target", _PROGRAMS)
def test_a_missing_library_is_named_with_its_extra(
    run: Any, folder: Path, nothing_installed: None, target: TargetFormat
) -> None:
    before = sorted(path.name for path in folder.iterdir())
    result = run("float.onnx", "--to", target.value)
    assert result.exit_code == 2
    assert "not installed here" in result.stderr
    assert f"pip install 'qtool-onnx[{target.value}]'" in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("target", _PROGRAMS)
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--opset", "17"), "--opset has no effect"),
        (("--bf16",), "--bf16"),
        (("--external-data",), "--external-data has no effect"),
        (("--external-data", "--max-shard-mb", "5"), "--external-data has no effect"),
        (("-o", "model.onnx"), "files for"),
        (("-o", "nowhere/model"), "files for"),
    ],
)
def test_options_without_effect_are_refused(
    run: Any, target: TargetFormat, options: tuple[str, ...], named: str
) -> None:
    result = run("float.onnx", "--to", target.value, *options)
    assert result.exit_code == 2
    assert named in result.stderr
