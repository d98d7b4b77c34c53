"""Sequences, texts, maps and lengths that depend on values, in every command that compares outputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from qtool.metrics.fidelity import FidelityMeter
from qtool.metrics.noise import NoiseMeter
from qtool.runtime.plain_values import plain

RANDOM = np.random.default_rng(0)
_BODY = "a = MatMul (x, w) b = Relu (a) c = MatMul (b, w2)"
_PICKED = "m = ReduceMax <axes = [1], keepdims = 0> (c) o = Greater (m, half) i = NonZero (o) t = Transpose (i)"
GRAPHS = {
    "sequence": f"(seq(float[N,4]) y) {{ {_BODY} y = SplitToSequence <axis = 1> (c, four) }}",
    "sequence inside": f"""(float[N,8] y) {{ {_BODY} s = SplitToSequence <axis = 1> (c, four)
        d = ConcatFromSequence <axis = 1> (s) y = MatMul (d, w) }}""",
    "texts": f"(string[N] y, float[N,8] c) {{ {_BODY} i = ArgMax <axis = 1, keepdims = 0> (c) y = Gather (names, i) }}",
    "maps": f"""(seq(map(int64,float)) y) {{ {_BODY} p = Softmax <axis = 1> (c)
        y = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1, 2, 3, 4, 5, 6, 7]> (p) }}""",
    "texts and maps": f"""(string[N] l, seq(map(string,float)) y) {{ {_BODY} p = Softmax <axis = 1> (c)
        i = ArgMax <axis = 1, keepdims = 0> (p)
        l = ai.onnx.ml.LabelEncoder <keys_int64s = [0, 1], values_strings = ["a", "b"]> (i)
        y = ai.onnx.ml.ZipMap <classlabels_strings = ["a", "b", "c", "d", "e", "f", "g", "h"]> (p) }}""",
    "lengths": f"(float[K,8] y) {{ {_BODY} {_PICKED} g1 = GatherND (b, t) y = MatMul (g1, w2) }}",
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "half": ("convert", "m.onnx", "--fp16", "-o", "out.onnx"),
    "half on data": ("convert", "m.onnx", "--fp16", "--calib-data", "d.npz", "-o", "out.onnx"),
    "older opset": ("convert", "m.onnx", "--opset", "16", "-o", "out.onnx"),
    "newer opset": ("convert", "m.onnx", "--opset", "18", "-o", "out.onnx"),
    "optimize": ("optimize", "m.onnx", "--data", "d.npz", "-o", "out.onnx"),
    "dynamic": ("quantize", "m.onnx", "--scheme", "dynamic", "-o", "out.onnx"),
    "sensitivity": ("sensitivity", "m.onnx", "--calib-data", "d.npz"),
    "calibrate": ("calibrate", "m.onnx", "--calib-data", "d.npz", "-o", "s.npz"),
    "split": ("split", "m.onnx", "--at", "b", "--data", "d.npz", "-o", "parts"),
    "inspect": ("inspect", "m.onnx", "--memory", "--data", "d.npz"),
}


@pytest.fixture
def build(tmp_path: Path) -> Callable[[str], None]:
    def call(name: str) -> None:
        text = f'<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 2]> g (float[N,8] x) => {GRAPHS[name]}'
        model = parser.parse_model(text)
        weights: dict[str, Any] = {
            "w": (RANDOM.standard_normal((8, 8)) * 0.3).astype(np.float32),
            "w2": (RANDOM.standard_normal((8, 8)) * 0.3).astype(np.float32),
            "four": np.int64(4),
            "half": np.float32(0.3),
            "names": np.array(list("abcdefgh"), np.object_),
        }
        used = {value for node in model.graph.node for value in node.input}
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), key) for key, value in weights.items() if key in used
        )
        onnx.save(model, tmp_path / "m.onnx")
        np.savez(tmp_path / "d.npz", x=RANDOM.standard_normal((24, 8)).astype(np.float32))

    return call


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_command_takes_them(run: Any, build: Callable[[str], None], name: str, command: str) -> None:
    build(name)
    result = run(*COMMANDS[command])
    assert result.code == 0, result.err
    if Path("out.onnx").exists():
        sessions = [ort.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in ("m.onnx", "out.onnx")]
        kinds = [[(one.name, one.type) for one in session.get_outputs()] for session in sessions]
        assert kinds[0] == kinds[1]


@pytest.mark.parametrize("name", GRAPHS)
def test_they_are_quantized_and_judged(run: Any, build: Callable[[str], None], name: str) -> None:
    build(name)
    result = run("quantize", "m.onnx", "--calib-data", "d.npz", "-o", "q.onnx", "--effort", "fast", "--json")
    assert result.code == 0, result.err
    onnx.checker.check_model(onnx.load("q.onnx"))
    report = run("report", "m.onnx", "q.onnx", "--data", "d.npz", "--no-latency", "--json")
    assert report.code == 0, report.err
    assert run("verify", "q.onnx").code == 0
    assert run("diff", "m.onnx", "q.onnx").code in (0, 1)


def test_values_of_any_kind_are_one_array() -> None:
    tensors = [np.ones((2, 3), np.float32), np.zeros(2, np.float32)]
    np.testing.assert_array_equal(plain(tensors), np.float32([1] * 6 + [0] * 2))
    maps = [{"a": 0.25, "b": 0.75}, {"a": 0.5, "b": 0.5}]
    np.testing.assert_array_equal(plain(maps), np.float32([[0.25, 0.75], [0.5, 0.5]]))
    assert plain({1: 0.5}).tolist() == [0.5]
    assert plain(None).size == plain([]).size == 0
    assert plain(["a", "b"]).tolist() == ["a", "b"]


@pytest.mark.parametrize(("shape", "other"), [((4, 3), (2, 3)), ((2, 3), (4, 3)), ((2, 3), (6,)), ((3, 1), (1, 3))])
def test_zeros_stand_for_what_one_output_lacks(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    a, b = np.ones(shape, np.float32), np.ones(other, np.float32)
    meter, noise = FidelityMeter(), NoiseMeter()
    meter.add({"y": a}, {"y": b})
    noise.add({"y": a}, {"y": b})
    (result,) = meter.results()
    lacking = abs(a.size - b.size)
    assert result.unmatched_batches == 1
    assert noise.worst() == pytest.approx(lacking / a.size)
    if lacking:
        assert result.sqnr_db == pytest.approx(-10 * np.log10(lacking / a.size))
