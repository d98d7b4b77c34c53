"""``--target``: what each machine gets, and the proof that one without 32-bit sums can hold them."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qtool.backends.onnxruntime_cpu.this_machine import target_here
from qtool.backends.targets import AUTO, PRESETS
from qtool.runtime.session import Session

_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "targets.md"
_LAYERS = ("Conv", "Gemm", "MatMul")


def _stored(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def _sources(path: Path) -> dict[str, list[str]]:
    """By node of the float model, what kind of node gives it each of its inputs; an empty text for none."""
    graph = onnx.load(path).graph
    producers = {output: node.op_type for node in graph.node for output in node.output}
    kept = [node for node in graph.node if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    return {node.name: [producers.get(name, "") for name in node.input] for node in kept}


def test_the_documentation_lists_every_target() -> None:
    rows = _PAGE.read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("| `")]
    assert [row[0].strip("`") for row in table] == list(PRESETS)
    first_words = {"onnxruntime-cpu": "where", "tensorrt": "before", "qnn": "around", "openvino": "before"}
    for (_, machine, activations, weights, biases, placement), scheme in zip(table, PRESETS.values(), strict=True):
        assert machine == scheme.standing
        assert scheme.description == f"{activations} activations, {weights.replace(', per ', ' per-')} weights"
        assert (biases == "int32") == scheme.integer_biases
        assert placement.split()[0] == first_words[scheme.backend]
        assert ("16-bit sums" in placement) == (scheme.largest_pair is not None)


@pytest.mark.parametrize("target", PRESETS)
def test_every_target_stores_the_integers_it_says_and_runs(run: Any, model: Path, data: Path, target: str) -> None:
    outcome = run("quantize", model, "--calib-data", data, "--target", target, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["target"] == target
    assert outcome.json["outputs"][0]["sqnr_db"] > 20
    path = model.with_name("net.int8.onnx")
    scheme, stored = PRESETS[target], _stored(path)
    assert stored["image_zero_point"].dtype == scheme.activations.dtype
    assert stored["w1_quantized"].dtype == scheme.weights.dtype
    assert stored["w1_scale"].shape == (16,)
    assert not stored["w1_zero_point"].any()
    if scheme.activations.symmetric:
        assert not any(array.any() for name, array in stored.items() if name.endswith("_zero_point"))
    assert any(array.dtype == np.int32 for array in stored.values()) == scheme.integer_biases
    logits = Session(path).run({"image": np.load(data)["image"][:2]})["logits"]
    assert logits.shape == (2, 10)
    manifest = path.with_name(outcome.json["manifest"].rpartition("/")[2]).read_text(encoding="utf-8")
    assert f'"target": "{target}"' in manifest


def test_auto_is_the_default_and_stands_for_this_machine(run: Any, model: Path) -> None:
    for options in ((), ("--target", AUTO)):
        assert run("quantize", model, "--dry-run", *options, "--json").json["target"] == target_here()


@pytest.mark.parametrize("target", PRESETS)
def test_a_plan_names_its_target(run: Any, model: Path, target: str) -> None:
    assert run("quantize", model, "--dry-run", "--target", target, "--json").json["target"] == target
    shown = run("quantize", model, "--dry-run", "--target", target).out
    assert f"for {PRESETS[target].machine}" in " ".join(shown.split())


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_compilers_get_pairs_before_layers_and_residuals_only(run: Any, model: Path, data: Path, target: str) -> None:
    outcome = run("quantize", model, "--calib-data", data, "--target", target)
    assert outcome.code == 0, outcome.err
    if target == "tensorrt" or find_spec("openvino") is None:
        assert "selects its own kernels" in outcome.out
        assert "the exact semantics of Q and DQ, node by node" in outcome.err
    sources = _sources(model.with_name("net.int8.onnx"))
    dequantized = "DequantizeLinear"
    assert sources["/c1/Conv"] == [dequantized, dequantized, ""]
    # What only moves values has Q before it for OpenVINO, and none behind.
    moved = "Flatten" if target == "openvino" else dequantized
    assert sources["/logits/Gemm"] == [moved, dequantized, ""]
    assert sources["/f/Flatten"] == [dequantized if target == "openvino" else "GlobalAveragePool"]
    # The convolution goes into the Add as it is; only what comes past it is quantized.
    assert sources["/s/Add"] == ["Conv", dequantized]
    assert sources["/r1/Relu"] == ["Conv"]
    # OpenVINO pools integers.
    assert sources["/p/GlobalAveragePool"] == [dequantized if target == "openvino" else "Relu"]


def test_an_npu_gets_pairs_around_everything(run: Any, save_model: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = save_model(
        "attention.onnx",
        """g (float[batch,6,8] x) => (float[batch,6,8] y) {
            product = MatMul (x, w)
            q = Add (product, c0)
            h = Tanh (q)
            p = Softmax <axis = -1> (h)
            c = Cast <to = 10> (p)
            f = Cast <to = 1> (c)
            n = LayerNormalization <axis = -1> (f, s, b)
            y = Sub (n, k)
        }""",
        w=rng.normal(0, 0.4, (8, 8)).astype(np.float32),
        c0=rng.normal(0, 0.4, 8).astype(np.float32),
        s=np.ones(8, np.float32),
        b=rng.normal(0, 1, 8).astype(np.float32),
        k=np.array([0.5], np.float32),
    )
    np.savez("calib.npz", x=rng.normal(0, 1, (24, 6, 8)).astype(np.float32))
    outcome = run("quantize", path, "--calib-data", "calib.npz", "--target", "qnn", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["outputs"][0]["sqnr_db"] > 20
    assert {entry["operator"] for entry in outcome.json["float_nodes"]} == {"Cast"}
    sources = _sources(tmp_path / "attention.int8.onnx")
    for name, kinds in sources.items():
        if "Cast" not in name:
            assert set(kinds) == {"DequantizeLinear"}, name
    assert sources["/c/Cast"] == ["DequantizeLinear"]
    graph = onnx.load(tmp_path / "attention.int8.onnx").graph
    assert {node.op_type for node in graph.node if node.output[0] == "y"} == {"DequantizeLinear"}


def test_options_win_over_the_target(run: Any, model: Path, data: Path) -> None:
    options = ("--target", "tensorrt", "--activation-type", "u8", "--activations-asymmetric", "--per-tensor")
    assert run("quantize", model, "--calib-data", data, *options).code == 0
    stored = _stored(model.with_name("net.int8.onnx"))
    assert stored["image_zero_point"].dtype == np.uint8
    assert stored["image_zero_point"] > 0
    assert stored["w1_scale"].shape == ()


@pytest.mark.parametrize("command", ["quantize", "calibrate", "verify"])
def test_an_unknown_target_names_the_nearest(run: Any, model: Path, data: Path, command: str) -> None:
    data_options = () if command == "verify" else ("--calib-data", data)
    outcome = run(command, model, *data_options, "--target", "tensor-rt")
    assert outcome.code == 2
    assert "there is no target 'tensor-rt'" in outcome.err
    assert "did you mean 'tensorrt'?" in outcome.err


@pytest.mark.parametrize("target", ["tensorrt", "qnn"])
def test_statistics_serve_the_target_they_are_made_for(run: Any, model: Path, data: Path, target: str) -> None:
    assert run("calibrate", model, "--calib-data", data, "--target", target).code == 0
    given = ("--calib-stats", "net.stats.npz", "--target", target)
    assert run("quantize", model, *given, "-o", "by_stats.onnx").code == 0
    if target == "tensorrt":
        refused = run("quantize", model, "--calib-stats", "net.stats.npz", "-o", "other.onnx")
        assert refused.code == 2
        assert "calibrate again with the same --target" in refused.err


def test_a_compiler_cannot_quantize_as_it_runs(run: Any, model: Path) -> None:
    outcome = run("quantize", model, "--scheme", "dynamic", "--target", "tensorrt")
    assert outcome.code == 2
    assert "is for onnxruntime's CPU provider, not for TensorRT" in outcome.err


def _worst_pair(weights: np.ndarray, *, conv: bool) -> int:
    """Adds up pairs of one sign, going through the weights as onnxruntime's kernels do."""
    rows = [one.transpose(1, 2, 0).ravel() if conv else one for one in weights.astype(int)]
    pairs = [pair for row in rows for pair in zip_longest(row[::2], row[1::2], fillvalue=0)]
    return max(abs(first + second) for first, second in pairs if first * second >= 0)


def test_a_model_for_avx2_holds_its_sums_and_proves_it(run: Any, model: Path, data: Path) -> None:
    outcome = run("quantize", model, "--calib-data", data, "--target", "x86-avx2", "-o", "safe.onnx", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["reduced_channels"]["w1"]
    assert outcome.json["outputs"][0]["sqnr_db"] > 20
    stored = _stored(Path("safe.onnx"))
    # The second is a depthwise convolution, whose kernel multiplies in 32 bits.
    for name in ("w1", "w3", "w4"):
        assert 255 * _worst_pair(stored[f"{name}_quantized"], conv=name != "w4") <= 32767
    proof = run("verify", "safe.onnx", "--target", "x86-avx2", "--json")
    assert proof.code == 0, proof.err
    saturation = proof.json["saturation"]
    assert saturation["safe"] is True
    assert (saturation["low"], saturation["high"]) == (-32768, 32767)
    assert [layer["operator"] for layer in saturation["layers"]] == ["Conv", "Conv", "Conv", "Gemm"]
    for layer, name in zip(saturation["layers"], ("w1", "w2", "w3", "w4"), strict=True):
        if name == "w2":
            assert layer["reason"] == "depthwise convolutions are multiplied in 32 bits"
            continue
        worst = max(layer["highest"], -layer["lowest"])
        assert worst == 255 * _worst_pair(stored[f"{name}_quantized"], conv=name != "w4")
    assert "no layer can overflow" in run("verify", "safe.onnx", "--target", "x86-avx2").out


def test_a_model_that_can_overflow_exits_with_one(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--calib-data", data, "--target", "x86-vnni").code == 0
    assert run("verify", "net.int8.onnx").code == 0
    outcome = run("verify", "net.int8.onnx", "--target", "x86-avx2")
    assert outcome.code == 1
    assert "of 4 integer layers can overflow" in outcome.err
    assert "--target x86-avx2" in outcome.err
    assert run("verify", "net.int8.onnx", "--target", "x86").code == 1
    assert run("verify", "net.int8.onnx", "--target", "x86-vnni").code == 0


def test_only_channels_that_could_overflow_are_reduced(
    run: Any, save_model: Any, network_text: str, weights: dict[str, np.ndarray], data: Path
) -> None:
    # One weight a channel, however large, has none to overflow with.
    sparse = np.zeros_like(weights["w3"])
    sparse[np.arange(16), np.arange(16)] = np.linspace(0.2, 1.7, 16).reshape(16, 1, 1)
    sparse[4, 5] = sparse[4, 4]
    path = save_model("net.onnx", network_text, **{**weights, "w3": sparse})
    for target in ("x86-vnni", "x86"):
        given = ("--calib-data", data, "--effort", "fast", "--no-gptq", "--target", target)
        outcome = run("quantize", path, *given, "-o", f"{target}.onnx", "--json")
        assert outcome.code == 0, outcome.err
    assert outcome.json["reduced_channels"]["w3"] == [4]
    wide, safe = _stored(Path("x86-vnni.onnx")), _stored(Path("x86.onnx"))
    changed = [channel for channel in range(16) if wide["w3_scale"][channel] != safe["w3_scale"][channel]]
    assert changed == [4]
    assert np.array_equal(np.delete(wide["w3_quantized"], 4, 0), np.delete(safe["w3_quantized"], 4, 0))


def test_a_target_that_wants_s8_around_zero_refuses_the_rest(run: Any, model: Path, data: Path) -> None:
    for target, code in (("x86", 1), ("arm64", 1), ("tensorrt", 0)):
        assert run("quantize", model, "--calib-data", data, "--target", target, "-o", f"{target}.onnx").code == 0
        outcome = run("verify", f"{target}.onnx", "--target", "tensorrt", "--json")
        assert outcome.code == code
        problems = {misfit["problem"] for misfit in outcome.json["misfits"]}
        assert (
            problems
            == {
                "x86": {"it is UINT8, not INT8", "it is INT32, not INT8"},
                "arm64": {"its zero point is not 0", "it is INT32, not INT8"},
                "tensorrt": set(),
            }[target]
        )
        assert ("does not support" in outcome.err) == bool(code)
    assert "it is UINT8, not INT8" in run("verify", "x86.onnx", "--target", "tensorrt").out


def test_unsigned_weights_cannot_overflow(run: Any, model: Path, data: Path) -> None:
    options = ("--weight-type", "u8", "--weights-asymmetric", "--per-tensor")
    assert run("quantize", model, "--calib-data", data, *options).code == 0
    outcome = run("verify", "net.int8.onnx", "--target", "x86-avx2", "--json")
    assert outcome.code == 0, outcome.err
    assert {layer["reason"] for layer in outcome.json["saturation"]["layers"]} == {
        "u8 by u8 is multiplied in 16 bits and added in 32"
    }


def test_what_is_computed_at_run_time_in_s8_is_not_proven(run: Any, save_model: Any) -> None:
    path = save_model(
        "product.onnx",
        """g (float[4,8] a, float[8,4] b) => (float[4,4] y) {
            qa = QuantizeLinear (a, s, za)
            da = DequantizeLinear (qa, s, za)
            qb = QuantizeLinear (b, s, zb)
            db = DequantizeLinear (qb, s, zb)
            y = MatMul (da, db)
        }""",
        s=np.array(0.1, np.float32),
        za=np.array(7, np.uint8),
        zb=np.array(0, np.int8),
    )
    outcome = run("verify", path, "--target", "x86-avx2", "--json")
    assert outcome.code == 1
    assert outcome.json["saturation"]["layers"][0]["reason"] == "its second factor is computed at run time, in s8"


def test_dynamic_layers_are_reduced_and_proven_too(run: Any, save_model: Any) -> None:
    weight = np.random.default_rng(0).normal(0, 1, (16, 8)).astype(np.float32)
    path = save_model("product.onnx", "g (float[n,16] x) => (float[n,8] y) { y = MatMul (x, w) }", w=weight)
    for target, code in (("x86-vnni", 1), ("x86-avx2", 0)):
        output = f"{target}.onnx"
        outcome = run("quantize", path, "--scheme", "dynamic", "--target", target, "-o", output, "--json")
        assert (outcome.code, outcome.json["target"]) == (0, target), outcome.err
        proof = run("verify", output, "--target", "x86-avx2", "--json")
        assert proof.code == code
        assert [layer["operator"] for layer in proof.json["saturation"]["layers"]] == ["MatMulInteger"]
