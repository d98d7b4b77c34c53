"""What ``qtool quantize`` advises can be done: it names no option that was not given, and not itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_GRAPH = """
g (float[n,3,8,8] image) => (float[n,8,6,6] map, float[n,4] scores) {
    a = Conv <pads = [1,1,1,1]> (image, w1)
    b = Tanh (a)
    map = Conv (b, w2)
    c = Relu (map)
    d = GlobalAveragePool (c)
    e = Flatten (d)
    f = Gemm <transA = 0> (e, w3)
    scores = Softmax (f)
}
"""


@pytest.fixture
def network(save: Callable[..., Path], tmp_path: Path) -> Path:
    rng = np.random.default_rng(9)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 4)}
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "c.npz", image=rng.normal(size=(24, 3, 8, 8)).astype(np.float32))
    return save("net.onnx", _GRAPH, **weights)


@pytest.mark.parametrize(
    "options",
    [
        ["--calib-data", "c.npz", "--target", "x86-avx2"],
        ["--calib-data", "c.npz", "--target", "arm64", "--max-float", "0"],
        ["--calib-data", "c.npz", "--target", "qnn", "--effort", "fast"],
        ["--calib-data", "c.npz", "--target", "tensorrt", "--effort", "fast"],
        ["--calib-data", "c.npz", "--target", "openvino", "--effort", "fast"],
        ["--scheme", "dynamic"],
    ],
)
def test_no_fix_is_about_what_was_not_given(run: Any, network: Path, options: list[str]) -> None:
    outcome = run("quantize", network, *options, "-o", "q.onnx", "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.json
    planned = {row["node"]: row["reason"] for row in document["float_nodes"]}
    for miss in document["coverage"]["misses"]:
        fix = miss["fix"] or ""
        assert "--include" not in fix
        assert "drop" not in fix
        assert "qtool quantize" not in fix
        if miss["node"] in planned:
            assert miss["reason"] == planned[miss["node"]]


def test_an_exclusion_that_was_given_may_be_dropped(run: Any, network: Path) -> None:
    outcome = run("quantize", network, "--calib-data", "c.npz", "--exclude", "n_a", "-o", "q.onnx", "--json")
    assert outcome.code == 0, outcome.err
    (miss,) = (miss for miss in outcome.json["coverage"]["misses"] if miss["node"] == "n_a")
    assert (miss["reason"], miss["fix"]) == ("--exclude 'n_a' matches it", "drop that --exclude")


def test_layers_that_stay_float_for_speed_come_with_the_flag_for_size(run: Any, network: Path) -> None:
    command = ["quantize", network, "--calib-data", "c.npz", "--target", "x86-avx2", "-o", "q.onnx", "--json"]
    outcome = run(*command, "--machine-profile", "shipped")
    assert outcome.code == 0, outcome.err
    slow = {row["node"] for row in outcome.json["float_nodes"] if row["reason"].startswith("integers save no time")}
    fixes = {miss["node"]: miss["fix"] for miss in outcome.json["coverage"]["misses"]}
    assert slow & fixes.keys()
    assert {fixes[node] for node in slow & fixes.keys()} == {"pass --smallest to quantize it anyway"}
