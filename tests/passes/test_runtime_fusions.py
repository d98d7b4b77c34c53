"""Preparing takes no pattern apart that onnxruntime would have fused in float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from qtool.runtime.session import Session
from qtool.workflows.quantize.prepare import prepare

Parsed = Callable[..., onnx.ModelProto]

_PATTERNS: Mapping[str, tuple[str, str]] = {
    "layer-normalization": (
        """m = ReduceMean <axes = [-1]> (x)
        d = Sub (x, m)
        s = Pow (d, two)
        v = ReduceMean <axes = [-1]> (s)
        e = Add (v, epsilon)
        r = Sqrt (e)
        n = Div (d, r)
        g = Mul (n, gamma)
        y = Add (g, beta)""",
        "LayerNormalization",
    ),
    "gelu": (
        """d = Div (x, root)
        f = Erf (d)
        o = Add (f, one)
        m = Mul (x, o)
        y = Mul (m, half)""",
        "Gelu",
    ),
    "gelu-half-first": (
        """d = Div (x, root)
        f = Erf (d)
        o = Add (f, one)
        h = Mul (x, half)
        y = Mul (h, o)""",
        "Gelu",
    ),
    "softmax-with-scale": ("d = Div (x, root) y = Softmax <axis = -1> (d)", "Softmax"),
}
_CONSTANTS: Mapping[str, npt.NDArray[Any] | np.generic] = {
    "two": np.float32(2.0),
    "epsilon": np.float32(1e-5),
    "gamma": np.linspace(0.5, 1.5, 8, dtype=np.float32),
    "beta": np.linspace(-0.5, 0.5, 8, dtype=np.float32),
    "root": np.float32(2.0**0.5),
    "one": np.float32(1.0),
    "half": np.float32(0.5),
}


def _fused(model: onnx.ModelProto, path: Path) -> Counter[str]:
    Session(model.SerializeToString(), threads=1, level="extended", optimized_to=path)
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("name", sorted(_PATTERNS))
def test_a_pattern_is_still_fused_after_preparing(parsed: Parsed, tmp_path: Path, name: str) -> None:
    body, kernel = _PATTERNS[name]
    used = {constant: array for constant, array in _CONSTANTS.items() if constant in body}
    model = parsed(f"g (float[N,T,8] x) => (float[N,T,8] y) {{ {body} }}", **used)
    before = _fused(model, tmp_path / "before.onnx")
    assert before[kernel] == 1
    after = _fused(ir.to_proto(prepare(ir.from_proto(model))), tmp_path / "after.onnx")
    assert after[kernel] == 1
    assert after.total() <= before.total()
