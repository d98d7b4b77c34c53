"""`qtool optimize --passes reorder-for-memory` on graphs whose order wastes memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qtool.scheduling.assumed_sizes import assumed_sizes
from qtool.scheduling.graph_tasks import tasks_of
from qtool.scheduling.tasks import bytes_while

_BRANCHES = """branches (float[{batch},4] x, bool take) => (float[{batch},1] y) {{
    a = Concat <axis = 1> (x, x, x, x, x, x, x, x)
    b = Concat <axis = 1> (x, x, x, x, x, x, x, x)
    c = ReduceSum (a, one)
    d = If (take) <
        then_branch = sum () => (float[{batch},1] s) {{ s = ReduceSum (b, one) }},
        else_branch = least () => (float[{batch},1] m) {{ m = ReduceMin (b, one) }}
    >
    y = Add (c, d)
}}"""


@pytest.fixture(params=["1", "batch"])
def branches(save: Any, request: pytest.FixtureRequest) -> Path:
    """Two large tensors, each of which is needed for one small one; the second inside of an If."""
    path: Path = save("branches.onnx", _BRANCHES.format(batch=request.param), one=np.array([1], np.int64))
    return path


def _order(path: Path) -> list[str]:
    return [node.name for node in onnx.load(path).graph.node]


def test_a_branch_is_done_before_the_next_one_begins(run: Any, branches: Path) -> None:
    result = run("optimize", branches, "--passes", "reorder-for-memory", "-o", "out.onnx")
    assert result.code == 0, result.err
    assert _order(branches.with_name("out.onnx")) in (
        ["n_a", "n_c", "n_b", "n_d", "n_y"],
        ["n_b", "n_d", "n_a", "n_c", "n_y"],
    )
    assert "peak of live activations 273 → 149 bytes" in result.out
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32), "take": np.array(True)}
    before, after = (
        ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for path in (branches, branches.with_name("out.onnx"))
    )
    np.testing.assert_array_equal(before, after)


def test_a_good_order_stays(run: Any, branches: Path) -> None:
    assert run("optimize", branches, "--passes", "reorder-for-memory", "-o", "once.onnx").code == 0
    again = run("optimize", "once.onnx", "--passes", "reorder-for-memory", "-o", "twice.onnx")
    assert "peak of live activations" not in again.out
    assert _order(branches.with_name("once.onnx")) == _order(branches.with_name("twice.onnx"))


def test_the_usual_passes_do_not_reorder(run: Any, branches: Path) -> None:
    result = run("optimize", branches, "--dry-run", "--json")
    assert result.code == 0
    assert "reorder-for-memory" not in result.out


def test_tasks_need_what_the_analysis_counts(facts: Any, network: Path) -> None:
    from qtool.formats.onnx.onnx_file import OnnxFile

    model = OnnxFile().read(network)
    tasks = tasks_of(model.graph, assumed_sizes(model))
    counted = [node["bytes"] for node in facts("net.onnx", "--memory")["memory"]["nodes"]]
    assert bytes_while(tasks, range(len(tasks.tasks))).tolist() == counted
