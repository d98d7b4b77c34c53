"""What ``inspect``, ``diff``, ``explain`` and ``verify`` say of weights in blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

_NETWORK = """
net (int64[n,5] tokens) => (float[n,5,40] y)
{
    x = Gather (table, tokens)
    h = MatMul (x, w)
    s = Add (h, b)
    a = Tanh (s)
    y = MatMul (a, v)
}
"""
_SHAPES = {"table": (300, 64), "w": (64, 96), "b": (96,), "v": (96, 40)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {_NETWORK}')
    generator = np.random.default_rng(0)
    for name, shape in _SHAPES.items():
        array = (generator.standard_normal(shape) * 0.1).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}"
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def _quantized(run: Any, model: Path, *options: object) -> Path:
    result = run("quantize", model, "--scheme", "weights", *options, "-o", model.with_name("q.onnx"), "--json")
    assert result.code == 0, result.err
    return Path(result.json["output"])


@pytest.mark.parametrize(
    ("options", "bits"),
    [(("--bits", 4), 4), (("--bits", 2), 2), (("--bits", 8, "--format", "qdq"), 8), (("--format", "qdq"), 4)],
    ids=["4", "2", "8-qdq", "4-qdq"],
)
def test_weights_in_blocks_are_seen_as_what_they_stand_for(
    run: Any, model: Path, options: tuple[object, ...], bits: int
) -> None:
    quantized = _quantized(run, model, *options)
    partition = run("inspect", quantized, "--json").json["graph"]["quantization"]
    assert (partition["layers"], partition["quantized_layers"]) == (2, 2)
    assert partition["quantized_parameters"] >= 64 * 96 + 96 * 40 + 300 * 64
    told = run("explain", quantized, "/h", "--json").json
    weight = next(tensor for tensor in told["tensors"] if tensor["tensor"] == "w")
    assert weight["scheme"] == f"uint{bits} asymmetric, in blocks of 32 on axis 0"
    changes = {
        (change["kind"], change["name"]): change for change in run("diff", model, quantized, "--json").json["changes"]
    }
    # A uniform step of the range over the integers leaves this much, roughly.
    assert 0.1 / 2**bits < changes["weights", "w"]["size"] < 2 / 2**bits
    assert not any(name.endswith(("_scales", "_points")) for _, name in changes)
    covered = run("verify", quantized, "--json").json
    assert (covered["integer_nodes"], covered["quantizable_nodes"]) == (2, 2)


def test_a_table_of_packed_rows_has_no_advice_to_replace_it(run: Any, model: Path) -> None:
    told = run("explain", _quantized(run, model), "/x", "--json").json
    assert not any("replace" in str(advice) for advice in told["advice"])


def test_verify_says_where_only_weights_are_integers(run: Any, model: Path) -> None:
    for level, told in ((0, True), (4, False)):
        path = _quantized(run, model, "--accuracy-level", level, "--force")
        result = run("verify", path)
        assert result.code == 0
        assert ("2 of 2 MatMulNBits have integer weights and multiply floats" in " ".join(result.err.split())) is told
