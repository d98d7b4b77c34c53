"""AWQ's factors: what they gain, where they fit, and that the model computes the same with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.runtime.graphs import open_graph
from qtool.weights.awq import awq_scales, fold_scales, scalable_inputs, scaled_hessian
from qtool.weights.blocks.grid import BlockGrid
from qtool.weights.blocks.quantization import round_blocks

_GRID = BlockGrid(bits=4, block=32, symmetric=False)
_WIDTH, _INNER = 64, 96
_DECODER = """
net (float[n,t,64] x) => (float[n,t,64] y)
{
    normed = LayerNormalization <axis = -1> (x, gain, bias)
    q = MatMul (normed, wq)
    k = MatMul (normed, wk)
    mixed = Add (q, k)
    sum1 = MatMul (mixed, wo)
    skipped, m, v, rest = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.00001> (x, sum1, gain2)
    gate = MatMul (skipped, wg)
    half = Sigmoid (gate)
    act = Mul (gate, half)
    up = MatMul (skipped, wu)
    inner = Mul (act, up)
    down = MatMul (inner, wd)
    hidden = Add (rest, down)
    scaled = Mul (hidden, gain3)
    shifted = Add (scaled, bias3)
    h = MatMul (shifted, w1)
    r = Relu (h)
    y = MatMul (r, w2)
}
"""
_SHAPES = {
    "wq": (_WIDTH, _WIDTH),
    "wk": (_WIDTH, _WIDTH),
    "wo": (_WIDTH, _WIDTH),
    "wg": (_WIDTH, _INNER),
    "wu": (_WIDTH, _INNER),
    "wd": (_INNER, _WIDTH),
    "w1": (_WIDTH, _INNER),
    "w2": (_INNER, _WIDTH),
    **dict.fromkeys(("gain", "bias", "gain2", "gain3", "bias3"), (_WIDTH,)),
}


def _decoder(text: str = _DECODER) -> onnx.ModelProto:
    """Returns the operators of a decoder's layer, with a few channels that are far stronger than the others."""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> {text}')
    generator = np.random.default_rng(0)
    for name, shape in _SHAPES.items():
        array = generator.standard_t(4, shape) * 0.1
        if name.startswith("gain"):
            array = np.ones(shape)
            array[::13] = 25.0
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}"
    return proto


def _x(count: int = 12) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (count, 10, _WIDTH)).astype(np.float32)


def _run(model: ir.Model) -> np.ndarray:
    with open_graph(model) as session:
        return session.run({"x": _x()})["y"]


def _layers(model: ir.Model) -> list[str]:
    return [node.name or "" for node in model.graph if node.op_type == "MatMul"]


def test_every_place_of_a_decoder_is_found() -> None:
    model = ir.from_proto(_decoder())
    found = {place.tensor: place.layers for place in scalable_inputs(model, _layers(model))}
    assert found == {
        "normed": ("/q", "/k"),
        "mixed": ("/sum1",),
        "skipped": ("/gate", "/up"),
        "inner": ("/down",),
        "shifted": ("/h",),
        "r": ("/y",),
    }


def test_factors_do_not_change_what_the_model_computes() -> None:
    model = ir.from_proto(_decoder())
    places = scalable_inputs(model, _layers(model))
    generator = np.random.default_rng(2)
    scales = {place.tensor: generator.lognormal(0, 1, place.channels) for place in places}
    folded = model.clone()
    fold_scales(folded, places, scales)
    np.testing.assert_allclose(_run(folded), _run(model), rtol=1e-3, atol=1e-3)
    before, after = (graph.graph.initializers["wd"].const_value.numpy() for graph in (model, folded))
    np.testing.assert_allclose(after, before * scales["inner"][:, np.newaxis], rtol=1e-5)


@pytest.mark.parametrize(
    ("line", "other", "lost"),
    [
        ("hidden = Add (rest, down)", "hidden = Add (normed, down)", "normed"),
        ("sum1 = MatMul (mixed, wo)", "sum1 = MatMul (mixed, wq)", "mixed"),
        ("act = Mul (gate, half)", "act = Mul (gate, up)", "inner"),
    ],
    ids=["another operator reads the tensor", "layers share a weight", "the factor is read twice"],
)
def test_tensors_that_cannot_be_scaled_are_left_out(line: str, other: str, lost: str) -> None:
    assert line in _DECODER
    model = ir.from_proto(_decoder(_DECODER.replace(line, other)))
    assert lost not in {place.tensor for place in scalable_inputs(model, _layers(model))}


def test_layers_that_stay_float_keep_their_input() -> None:
    model = ir.from_proto(_decoder())
    found = {place.tensor for place in scalable_inputs(model, [name for name in _layers(model) if name != "/k"])}
    assert "normed" not in found
    assert "skipped" in found


def test_factors_take_error_away_where_channels_differ() -> None:
    generator = np.random.default_rng(3)
    inputs = generator.normal(0, 1, (_WIDTH, 500))
    inputs[::13] *= 25.0
    weight = (generator.normal(0, 1, (48, _WIDTH)) * 0.1).astype(np.float32)
    hessian = inputs @ inputs.T
    scales = awq_scales([(weight, _GRID)], hessian)
    assert scales is not None
    plain = round_blocks("w", weight, _GRID).dequantized() - weight
    scaled = round_blocks("w", (weight * scales).astype(np.float32), _GRID).dequantized() / scales - weight
    noise = [float(np.square(error @ inputs).sum()) for error in (plain, scaled)]
    assert noise[1] < 0.6 * noise[0]
    np.testing.assert_allclose(scaled_hessian(hessian, scales), (inputs.T / scales).T @ (inputs.T / scales))


def test_without_signal_there_are_no_factors() -> None:
    weight = np.ones((8, _WIDTH), np.float32)
    assert awq_scales([(weight, _GRID)], np.zeros((_WIDTH, _WIDTH))) is None


def test_awq_is_closer_than_rounding_to_nearest(run: Any, tmp_path: Path) -> None:
    onnx.save(_decoder(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=_x(48))
    found = {}
    for method in ("rtn", "awq", "awq-gptq"):
        result = run(
            *("quantize", "net.onnx", "--calib-data", "data.npz", "--scheme", "weights", "--weight-method", method),
            *("--accuracy-level", "0", "-o", f"{method}.onnx", "--json"),
        )
        assert result.code == 0, result.err
        assert result.json["weight_method"] == method
        found[method] = result.json["attempts"][0]["sqnr_db"]
    assert found["awq"] > found["rtn"] + 2.0
    assert found["awq-gptq"] > found["rtn"] + 2.0
    operators = [node.op_type for node in onnx.load("awq.onnx").graph.node]
    # Factors are folded into constants: there is no operator more.
    assert operators.count("MatMulNBits") == 8
    assert operators == [node.op_type for node in onnx.load("rtn.onnx").graph.node]
