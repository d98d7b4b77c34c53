"""The files that ``qtool report`` writes for people and for CI."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qtool.cli.app import app

Pair = Any  # the dataclass in conftest.py, which tests cannot import

pytestmark = pytest.mark.usefixtures("without_memory")


@pytest.fixture
def report(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        models = (pair.float_model, pair.quantized_model, "--data", pair.data, "--no-latency")
        return CliRunner().invoke(app, ["report", *map(str, (*models, *arguments))])

    return run


def test_every_form_is_written_before_a_gate_ends_the_command(report: Any, tmp_path: Path) -> None:
    result = report(
        *("--html", "r.html", "--junit", "r.xml", "--markdown", "r.md", "-o", "r.json"),
        *("--fail-if", "sqnr_db < 90", "--fail-if", "size_mb > 9"),
    )
    assert result.exit_code == 1
    document = json.loads((tmp_path / "r.json").read_text())
    sqnr = f"{document['figures']['sqnr_db']:.2f} dB"
    assert sqnr in result.stdout
    for name in ("r.html", "r.md"):
        assert sqnr in (tmp_path / name).read_text(encoding="utf-8")
    assert [verdict["outcome"] for verdict in document["verdicts"]] == ["failed", "passed"]


def test_junit_has_a_case_for_each_gate(report: Any, tmp_path: Path) -> None:
    report("--junit", "r.xml", "--fail-if", "sqnr_db < 90", "--fail-if", "size_mb > 9", "-o", "r.json")
    (suite,) = ET.parse(tmp_path / "r.xml").getroot()
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("quantized.onnx", "2", "1")
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    failure = cases["sqnr_db < 90"].find("failure")
    assert failure is not None
    assert "missed by" in (failure.get("message") or "")
    assert cases["size_mb > 9"].find("failure") is None
    figures = json.loads((tmp_path / "r.json").read_text())["figures"]
    properties = {entry.get("name"): float(entry.get("value") or "nan") for entry in suite.iter("property")}
    assert properties["sqnr_db"] == pytest.approx(figures["sqnr_db"], rel=1e-5)
    assert "latency_ms" not in properties


def test_junit_without_gates_has_one_case(report: Any, tmp_path: Path) -> None:
    assert report("-o", "r.xml").exit_code == 0
    (suite,) = ET.parse(tmp_path / "r.xml").getroot()
    assert len(list(suite.iter("testcase"))) == 1


def test_the_step_summary_is_added_to(report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = report("--step-summary") if monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False) is None else None
    assert refused is not None
    assert refused.exit_code == 2
    assert "GITHUB_STEP_SUMMARY is not set" in refused.stderr
    (tmp_path / "summary.md").write_text("# Before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert report("--step-summary").exit_code == 0
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert text.startswith("# Before\n### float.onnx → quantized.onnx")


def test_two_forms_do_not_share_a_file(report: Any) -> None:
    result = report("--html", "r.md", "--markdown", "r.md")
    assert result.exit_code == 2
    assert "same file" in result.stderr


def test_a_missing_folder_is_told_before_anything_runs(report: Any) -> None:
    result = report("--html", "none/r.html")
    assert result.exit_code == 2
    assert "mkdir -p none" in result.stderr
