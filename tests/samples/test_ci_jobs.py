"""The scripts of `samples/ci` fail when they should, and the jobs in docs/guides/reports-and-ci.md run them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="the scripts are for sh")

Job = Callable[..., "subprocess.CompletedProcess[str]"]


def _jobs(ci_guide: str) -> dict[str, Any]:
    """Returns the YAML of the guide by the file that it is for."""
    yaml = pytest.importorskip("yaml")
    blocks = re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", ci_guide, re.DOTALL | re.MULTILINE)
    return {name: yaml.safe_load(text) for name, text in blocks}


@pytest.mark.slow
def test_the_github_job_leaves_models_a_report_and_a_summary(ci_guide: str, clone: Path, job: Job) -> None:
    steps = _jobs(ci_guide)[".github/workflows/model.yml"]["jobs"]["check"]["steps"]
    (line,) = [step["run"] for step in steps if step.get("run", "").startswith("sh ")]
    (uploaded,) = [step["with"]["path"] for step in steps if step.get("uses", "").startswith("actions/upload-artifact")]
    result = job(line, GITHUB_STEP_SUMMARY=str(clone / "summary.md"))
    assert result.returncode == 0, result.stdout + result.stderr
    made = {path.name for path in (clone / uploaded).iterdir()}
    assert made >= {"digits.int8.onnx", "digits.int8.manifest.json", "report.html", "report.xml", "qtool.log"}
    assert "digits.int8.onnx" in (clone / "summary.md").read_text(encoding="utf-8")
    assert "calibrating:" in (clone / uploaded / "qtool.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_gitlab_job_fails_on_a_missed_gate_and_shows_it_as_a_test(ci_guide: str, clone: Path, job: Job) -> None:
    check = _jobs(ci_guide)[".gitlab-ci.yml"]["check-model"]
    script = clone / "samples" / "ci" / "check_model.sh"
    script.write_text(script.read_text().replace("size_ratio > 0.4", "size_ratio > 0.01"))
    (line,) = [line for line in check["script"] if line.startswith("sh ")]
    result = job(line, GITHUB_STEP_SUMMARY="")
    assert result.returncode == 1, result.stdout + result.stderr
    suites = ET.parse(clone / check["artifacts"]["reports"]["junit"])
    failed = [case.get("name") for case in suites.iter("testcase") if case.find("failure") is not None]
    assert len(failed) == 1
    assert "size_ratio" in str(failed[0])


def test_both_jobs_install_the_clone_that_they_are_in(ci_guide: str) -> None:
    jobs = _jobs(ci_guide)
    steps = jobs[".github/workflows/model.yml"]["jobs"]["check"]["steps"]
    lines = [step["run"] for step in steps if "run" in step], jobs[".gitlab-ci.yml"]["check-model"]["script"]
    for commands in lines:
        (install,) = [shlex.split(line) for line in commands if line.startswith("pip ")]
        assert install[-1] == "."
        assert "constraints.txt" in install


@pytest.mark.slow
def test_the_hook_stops_models_that_run_in_float(ci_guide: str, clone: Path, job: Job) -> None:
    (hook,) = _jobs(ci_guide)[".pre-commit-config.yaml"]["repos"][0]["hooks"]
    text = "net (float[n,6] x) => (float[n,4] y) { y = MatMul (x, w) }"
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    generator = np.random.default_rng(0)
    proto.graph.initializer.append(numpy_helper.from_array(generator.normal(0, 1, (6, 4)).astype(np.float32), "w"))
    onnx.save(proto, clone / "float.int8.onnx")
    np.savez(clone / "d.npz", x=generator.normal(0, 1, (16, 6)).astype(np.float32))
    quantize = "qtool quantize float.int8.onnx --calib-data d.npz --effort fast --smallest -o good.int8.onnx"
    result = job(quantize)
    assert result.returncode == 0, result.stderr
    files = [name for name in ("good.int8.onnx", "float.int8.onnx", "notes.onnx") if re.search(hook["files"], name)]
    assert files == ["good.int8.onnx", "float.int8.onnx"]
    assert job(f"{hook['entry']} good.int8.onnx").returncode == 0
    result = job(f"{hook['entry']} {' '.join(files)}")
    assert result.returncode == 1
    assert "of the quantizable nodes run on integers" in result.stderr
