"""Lengths of inputs and outputs keep the names that the model gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest


def _declared(path: Path | str) -> dict[str, list[str | int]]:
    graph = onnx.load(path).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


@pytest.mark.parametrize(
    "body",
    [
        "y = Cast <to = 1> (b)",
        "y = Identity (b)",
        "s = Shape (b) y = Reshape (b, s)",
        "c = Concat <axis = 0> (b) y = Identity (c)",
    ],
)
@pytest.mark.parametrize("command", ["optimize", "quantize"])
def test_a_named_length_keeps_its_name(
    run: Any, save: Callable[..., Path], tmp_path: Path, body: str, command: str
) -> None:
    rng = np.random.default_rng(7)
    path = save(
        "net.onnx",
        f"""g (float[n,t,16] x, int64[rank] lengths) => (float[m,16] y) {{
            a = MatMul (x, w)  b = Reshape (a, lengths)  {body}
        }}""",
        w=rng.normal(size=(16, 16)).astype(np.float32),
    )
    options = []
    if command == "quantize":
        for number in range(8):
            (tmp_path / "data").mkdir(exist_ok=True)
            sample = rng.normal(size=(1, 3, 16)).astype(np.float32)
            np.savez(tmp_path / "data" / f"{number}.npz", x=sample, lengths=np.array([-1, 16]))
        options = ["--calib-data", "data", "--batch-size", 1, "--target", "x86-avx2", "--effort", "fast"]
    outcome = run(command, path, *options, *(["--no-check"] if command == "optimize" else []), "-o", "out.onnx")
    assert outcome.code == 0, outcome.err
    assert _declared("out.onnx") == _declared(path)
