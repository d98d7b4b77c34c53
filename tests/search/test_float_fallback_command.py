"""Layers that stay float without a figure to reach, as the command line keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser


def _network(folder: Path, ruined: int) -> Path:
    """Writes six convolutions of 24 channels, and data; a channel that is always 0 has huge weights in one of them."""
    generator = np.random.default_rng(6)
    names = ["x", *(f"r{number}" for number in range(6))]
    body = "\n".join(f"c{n} = Conv <pads = [1,1,1,1]> ({names[n]}, w{n})\n r{n} = Relu (c{n})" for n in range(6))
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[n,24,8,8] x) => (float[n,24] y)'
        f"{{ {body}\n p = GlobalAveragePool (r5)\n y = Flatten (p) }}"
    )
    weights = [generator.normal(0, 0.1, (24, 24, 3, 3)).astype(np.float32) for _ in range(6)]
    images = generator.normal(0, 1, (24, 24, 8, 8)).astype(np.float32)
    if ruined:
        weights[ruined - 1][0] = 0.0
    else:
        images[:, 0] = 0.0
    weights[ruined][:, 0] = 400.0
    proto.graph.initializer.extend(numpy_helper.from_array(array, f"w{n}") for n, array in enumerate(weights))
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}"
    onnx.save(proto, folder / "net.onnx")
    np.savez(folder / "data.npz", x=images)
    return folder / "net.onnx"


def _sqnr_db(one: Path, other: Path, images: np.ndarray) -> float:
    expected, given = (ort.InferenceSession(str(path)).run(None, {"x": images})[0] for path in (one, other))
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - given).sum()))


@pytest.mark.parametrize("ruined", [0, 3])
def test_the_command_keeps_the_ruined_layer_float(run: Callable[..., Any], tmp_path: Path, ruined: int) -> None:
    model = _network(tmp_path, ruined)
    options = (
        "--calib-data",
        "data.npz",
        "--no-cle",
        "--no-smoothquant",
        "--target",
        "x86-vnni",
        "--json",
        "-o",
    )
    plain = run("quantize", model, *options, "plain.onnx", "--max-float", "0")
    result = run("quantize", model, *options, "q.onnx")
    assert (plain.code, result.code) == (0, 0), result.err
    assert plain.json["kept_float"] is None
    kept = result.json["kept_float"]
    assert kept["layers"] == [f"/c{ruined}"]
    assert kept["stopped"] is None
    # Six layers alike, and some tensors more to convert: as long as the model is broken, half of all may be given up.
    assert 1 / 6 < kept["share_given_up"] <= 0.5
    with np.load(tmp_path / "data.npz") as arrays:
        broken, mended = (_sqnr_db(model, tmp_path / name, arrays["x"]) for name in ("plain.onnx", "q.onnx"))
    assert broken < 20 < 25 < mended
    reasons = {node["node"]: node["reason"] for node in result.json["float_nodes"]}
    assert reasons[f"/c{ruined}"].startswith("kept float for accuracy: quantizing its layer alone leaves")
    assert run("quantize", model, *options, "again.onnx").code == 0
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "q.onnx").read_bytes()


def test_no_time_keeps_nothing_float(run: Callable[..., Any], tmp_path: Path) -> None:
    arguments = ("--calib-data", "data.npz", "--no-cle", "--time-budget", "0", "--json")
    kept = run("quantize", _network(tmp_path, 3), *arguments).json["kept_float"]
    assert kept["layers"] == []
    assert kept["stopped"] == "the time budget of 0 s was used up"
    assert kept["sqnr_db"] == kept["integers_everywhere_sqnr_db"]
