"""LSTM with integer weights: DynamicQuantizeLSTM against onnxruntime's own quantizer, and back."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser
from onnxruntime.quantization import QuantType
from onnxruntime.quantization import quantize_dynamic as theirs

from qtool.backends.onnxruntime_cpu.integer_sums import sums_saturate

Array = np.ndarray[Any, np.dtype[Any]]
_BOTH = 2


def _lstm(
    path: Path,
    *,
    hidden: int = 24,
    inputs: int = 20,
    directions: int = 1,
    operator: str = "LSTM",
    extra: str = "",
    peepholes: bool = False,
    attributes: str = "",
) -> Path:
    """Writes an LSTM over (time, batch, inputs) with every output, a bias and both initial states."""
    gates = {"LSTM": 4, "GRU": 3}[operator]
    direction = "bidirectional" if directions == _BOTH else "forward"
    given = "x, w, r, b" + (", , , , p" if peepholes else "")
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    net (float[t,n,{inputs}] x) => (float[t,{directions},n,{hidden}] y, float[{directions},n,{hidden}] h)
    {{ y, h = {operator} <hidden_size = {hidden}, direction = "{direction}"{attributes}> ({given}) {extra} }}"""
    proto = parser.parse_model(text)
    generator = np.random.default_rng(0)
    shapes = {
        "w": (directions, gates * hidden, inputs),
        "r": (directions, gates * hidden, hidden),
        "b": (directions, 2 * gates * hidden),
        **({"p": (directions, 3 * hidden)} if peepholes else {}),
    }
    for name, shape in shapes.items():
        array = (generator.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        # Rows that reach unlike far, which scales of their own suit.
        array *= np.geomspace(0.2, 2, shape[1], dtype=np.float32).reshape(1, -1, *[1] * (len(shape) - 2))
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    proto.graph.node[0].name = "rnn"
    onnx.save(proto, path)
    return path


def _samples(inputs: int = 20, batch: int = 3) -> dict[str, Array]:
    return {"x": np.random.default_rng(1).standard_normal((12, batch, inputs)).astype(np.float32)}


def _run(path: Path, feed: dict[str, Array]) -> list[Array]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, feed)
    return found


def _decibels(expected: Array, got: Array) -> float:
    return float(10 * np.log10((expected.astype(np.float64) ** 2).sum() / ((expected - got) ** 2).sum()))


def _quantized(run: Any, path: Path, *options: object) -> Path:
    output = path.with_name("q.onnx")
    result = run("quantize", path, "--scheme", "dynamic", *options, "-o", output, "--force", "--json")
    assert result.code == 0, result.err
    assert "rnn" in result.json["dynamic_nodes"]
    return output


@pytest.mark.parametrize("spread", ["--per-channel", "--per-tensor"])
@pytest.mark.parametrize("directions", [1, 2])
def test_it_computes_what_onnxruntimes_own_quantizer_does(
    run: Any, tmp_path: Path, directions: int, spread: str
) -> None:
    model = _lstm(tmp_path / "net.onnx", directions=directions)
    mine = _quantized(run, model, spread, "--target", "x86-vnni")
    reference = tmp_path / "theirs.onnx"
    theirs(model, reference, weight_type=QuantType.QInt8, per_channel=spread == "--per-channel")
    assert [node.op_type for node in onnx.load(mine).graph.node] == ["DynamicQuantizeLSTM"]
    feed = _samples()
    expected, own, other = (_run(path, feed) for path in (model, mine, reference))
    if spread == "--per-channel":
        # The same integers, or one off where a quotient lies between two.
        for one, two in zip(own, other, strict=True):
            np.testing.assert_allclose(one, two, atol=2e-3)
    for wanted, one, two in zip(expected, own, other, strict=True):
        assert _decibels(wanted, one) > 25 or sums_saturate()
        assert _decibels(wanted, one) > _decibels(wanted, two) - 1


@pytest.mark.parametrize(
    "form",
    [
        {"peepholes": True},
        {"attributes": ", clip = 0.5"},
        {"attributes": ', activations = ["HardSigmoid", "Relu", "Softsign"]'},
        {"attributes": ", input_forget = 1"},
    ],
    ids=["peepholes", "clip", "activations", "input-forget"],
)
def test_further_forms_keep_their_meaning(run: Any, tmp_path: Path, form: dict[str, Any]) -> None:
    model = _lstm(tmp_path / "net.onnx", **form)
    expected = _run(model, _samples())
    got = _run(_quantized(run, model), _samples())
    for wanted, one in zip(expected, got, strict=True):
        assert _decibels(wanted, one) > 20


def test_dequantizing_gives_lstm_back(run: Any, tmp_path: Path) -> None:
    model = _lstm(tmp_path / "net.onnx", directions=2, peepholes=True)
    quantized = _quantized(run, model)
    result = run("dequantize", quantized, "-o", tmp_path / "back.onnx", "--json")
    assert result.code == 0, result.err
    before, after = onnx.load(model).graph, onnx.load(tmp_path / "back.onnx").graph
    assert [(node.op_type, node.domain) for node in after.node] == [("LSTM", "")]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.initializer}
    for tensor in before.initializer:
        array = numpy_helper.to_array(tensor)
        step = np.abs(array).max(axis=-1, keepdims=True) / 63  # 7 bits on processors whose sums saturate
        assert (np.abs(stored[tensor.name] - array) <= step).all()


def test_verify_explain_and_inspect_know_it(run: Any, tmp_path: Path) -> None:
    quantized = _quantized(run, _lstm(tmp_path / "net.onnx"))
    counted = run("verify", quantized, "--json").json
    assert (counted["integer_nodes"], counted["quantizable_nodes"]) == (1, 1)
    told = run("explain", quantized, "rnn", "--json").json
    assert told["node"]["fate"]["kernel"] == "DynamicQuantizeLSTM"
    schemes = {tensor["tensor"]: tensor["scheme"] for tensor in told["tensors"]}
    assert schemes["w"] == schemes["r"] == "int8 symmetric, per channel on axis 1 (96)"
    facts = run("inspect", quantized, "--json").json["graph"]["quantization"]
    assert facts["integer_nodes"] == 1
    assert facts["quantized_parameters"] == 4 * 24 * (20 + 24)


def test_gru_stays_float_and_says_so(run: Any, tmp_path: Path) -> None:
    model = _lstm(tmp_path / "net.onnx", operator="GRU", extra="z = MatMul (h, m)")
    proto = onnx.load(model)
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(24, dtype=np.float32), "m"))
    proto.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, "n", 24]))
    proto.graph.node[1].name = "product"
    onnx.save(proto, model)
    result = run("quantize", model, "--scheme", "dynamic", "-o", tmp_path / "q.onnx", "--json")
    assert result.code == 0, result.err
    reasons = {row["node"]: row["reason"] for row in result.json["float_nodes"]}
    assert "no such kernel for GRU" in reasons["rnn"]
    assert [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node].count("GRU") == 1


def test_a_model_of_gru_alone_has_nothing_to_quantize(run: Any, tmp_path: Path) -> None:
    result = run("quantize", _lstm(tmp_path / "net.onnx", operator="GRU"), "--scheme", "dynamic")
    assert result.code == 2
    assert "no such kernel for GRU" in " ".join(result.err.split())


def test_weights_that_are_computed_stay_float(run: Any, tmp_path: Path) -> None:
    model = _lstm(tmp_path / "net.onnx")
    proto = onnx.load(model)
    proto.graph.input.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [1, 96, 20]))
    del proto.graph.initializer[0]
    onnx.save(proto, model)
    result = run("quantize", model, "--scheme", "dynamic", "--dry-run")
    assert result.code == 2
    assert "its weights are computed at run time" in " ".join(result.err.split())


def test_the_plan_lists_both_weights(run: Any, tmp_path: Path) -> None:
    result = run("quantize", _lstm(tmp_path / "net.onnx"), "--scheme", "dynamic", "--dry-run", "--json")
    assert [row["tensor"] for row in json.loads(result.out)["tensors"]] == ["w", "r"]


def test_it_is_as_fast_as_their_form(run: Any, tmp_path: Path) -> None:
    model = _lstm(tmp_path / "net.onnx", hidden=160, inputs=160)
    mine = _quantized(run, model)
    theirs(model, tmp_path / "theirs.onnx", weight_type=QuantType.QInt8, per_channel=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for path in (mine, tmp_path / "theirs.onnx")
    ]
    feed = _samples(160, batch=1)
    times: list[list[float]] = [[], []]
    for _ in range(30):
        for session, seen in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            seen.append(time.perf_counter() - start)
    assert min(times[0]) < 1.5 * min(times[1])


def test_a_static_model_takes_single_lstm_as_dynamic(run: Any, tmp_path: Path) -> None:
    model = _lstm(tmp_path / "net.onnx", extra="z = MatMul (h, m)")
    proto = onnx.load(model)
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(24, dtype=np.float32), "m"))
    proto.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, "n", 24]))
    proto.graph.node[1].name = "product"
    onnx.save(proto, model)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(3).standard_normal((12, 8, 20)).astype(np.float32))
    data = ("--calib-data", tmp_path / "data.npz", "--batch-size", 12, "--effort", "fast")
    result = run("quantize", model, *data, "--dynamic", "LSTM", "-o", tmp_path / "q.onnx", "--json")
    assert result.code == 0, result.err
    kinds = [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node]
    assert kinds.count("DynamicQuantizeLSTM") == 1
    assert "QuantizeLinear" in kinds
