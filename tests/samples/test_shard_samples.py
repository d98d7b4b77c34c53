"""The samples for shards do what they say, those for other schedulers as far as that shows here."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="the scripts are for sh")

Job = Callable[..., "subprocess.CompletedProcess[str]"]

_SCRIPT = "sh samples/shards/calibrate_shards.sh net.onnx d.npz stats 2 2"


@pytest.fixture
def files(clone: Path) -> None:
    """A small model and data for it."""
    generator = np.random.default_rng(0)
    text = "net (float[n,6] x) => (float[n,4] y) { y = MatMul (x, w) }"
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.append(numpy_helper.from_array(generator.normal(0, 1, (6, 4)).astype(np.float32), "w"))
    onnx.save(proto, clone / "net.onnx")
    np.savez(clone / "d.npz", x=generator.normal(0, 1, (16, 6)).astype(np.float32))


@pytest.mark.slow
@pytest.mark.usefixtures("files")
def test_the_script_joins_what_its_shards_found(run: Any, clone: Path, job: Job) -> None:
    result = job(_SCRIPT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert run("calibrate", "net.onnx", "--calib-data", "d.npz", "-o", "one.npz").code == 0
    assert (clone / "stats" / "all.stats.npz").read_bytes() == (clone / "one.npz").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("files")
def test_the_script_goes_on_where_it_stopped(clone: Path, job: Job) -> None:
    assert job(_SCRIPT).returncode == 0
    kept, joined = clone / "stats" / "shard-1.stats.npz", clone / "stats" / "all.stats.npz"
    before, whole = kept.stat().st_mtime_ns, joined.read_bytes()
    (clone / "stats" / "shard-2.stats.npz").unlink()
    assert job(_SCRIPT).returncode == 0
    assert kept.stat().st_mtime_ns == before
    assert joined.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.usefixtures("files")
def test_tasks_of_an_array_make_shards_that_merge(clone: Path, job: Job) -> None:
    script = (clone / "samples" / "shards" / "calibrate.sbatch").read_text()
    for number in (1, 2):
        surroundings = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "2"}
        result = job("sh samples/shards/calibrate.sbatch net.onnx d.npz stats", **surroundings)
        assert result.returncode == 0, result.stderr
    (merge,) = re.findall(r"--wrap '(.+)'", script)
    assert job(merge).returncode == 0
    assert (clone / "all.stats.npz").is_file()


def test_the_workflow_makes_every_shard_and_merges_them(clone: Path) -> None:
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((clone / "samples" / "shards" / "calibrate.yml").read_text())
    shard, merge = workflow["jobs"]["shard"], workflow["jobs"]["merge"]
    assert shard["strategy"]["matrix"]["number"] == list(range(1, workflow["env"]["SHARDS"] + 1))
    (line,) = [step["run"] for step in shard["steps"] if "--shard" in step.get("run", "")]
    words = shlex.split(line.replace("${{ matrix.number }}", "3"))
    assert words[words.index("--shard") + 1] == "3/$SHARDS"
    assert words[words.index("-o") + 1] == "part-3.stats.npz"
    (uploaded,) = [step["with"]["path"] for step in shard["steps"] if "upload" in step.get("uses", "")]
    (line,) = [step["run"] for step in merge["steps"] if "--merge" in step.get("run", "")]
    assert uploaded in shlex.split(line)
    assert merge["needs"] == "shard"
