"""Every example of docs/extending.md works as it stands there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file, save_file

import qtool
from qtool.calib.affine import dequantize, params_from_range, quantize
from qtool.calib.grid import Grid
from qtool.calib.ranges import range_method_class
from qtool.calib.statistics import TensorStatistics
from tests.extending.conftest import REGISTRIES, blocks_of

_NET = "net (float[n, 16] x) => (float[n, 8] y) { h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v) }"


@pytest.fixture
def model(save: Callable[..., Path], tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    mixed = rng.normal(size=(64, 4)) @ rng.normal(size=(4, 16)) + 0.1 * rng.normal(size=(64, 16))
    np.savez(tmp_path / "data.npz", x=mixed.astype(np.float32))
    weights = {"w": rng.normal(size=(16, 32)), "v": rng.normal(size=(32, 8))}
    return save("net.onnx", _NET, **{name: array.astype(np.float32) for name, array in weights.items()})


@pytest.mark.parametrize("title", REGISTRIES)
def test_one_thing_is_its_files_and_one_entry(title: str) -> None:
    *files, (_, entry) = blocks_of(title)
    folders = {Path(path).parent for path, _ in files}
    assert len(files) == 1 or len(folders) == 1
    assert len([line for line in entry.splitlines() if line.startswith('    "')]) == 1


@pytest.mark.parametrize("title", REGISTRIES)
def test_examples_are_in_the_style_of_the_project(title: str, tmp_path: Path) -> None:
    config = Path(__file__).resolve().parents[2] / "pyproject.toml"
    for path, text in blocks_of(title)[:-1]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    ours = "lint.isort.known-first-party=['qtool']"
    for command in (("check", "--config", ours), ("format", "--check")):
        arguments = [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", str(config), str(tmp_path)]
        result = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout


def test_a_range_method_clips_what_is_not_worth_its_room(
    extend: Callable[[str], str], model: Path, tmp_path: Path
) -> None:
    name = extend("A range method")
    method = range_method_class(name)()
    grid = Grid(bits=8, signed=False, symmetric=False)
    values = np.random.default_rng(0).standard_t(5, size=(50, 20_000)).astype(np.float32)
    statistics = TensorStatistics()
    statistics.add(values, values, samples=len(values))
    span = method.span(statistics, grid)

    def squared_error(low: float, high: float) -> float:
        params = params_from_range(type(span)(low, high), grid)
        return float(np.mean((dequantize(quantize(values, params), params) - values) ** 2, dtype=np.float64))

    assert span.high < 0.7 * np.abs(values).max()
    assert squared_error(span.low, span.high) < 0.7 * squared_error(float(values.min()), float(values.max()))
    # No other place to clip on both sides is much better.
    best = min(squared_error(-clip, clip) for clip in np.linspace(1.0, float(values.max()), 100))
    assert squared_error(span.low, span.high) <= 1.1 * best
    report = qtool.quantize(
        qtool.QuantizeRequest(
            source=qtool.ModelSource(path=model),
            data=qtool.DataRequest(source=str(tmp_path / "data.npz")),
            method=method,
            method_name=name,
            searches=qtool.searches(qtool.Effort.FAST, ranges=False),
            timing=qtool.Timing(for_size=True),
        )
    )
    assert f'"name": "{name}"' in report.manifest.read_text(encoding="utf-8")
    assert min(fidelity.sqnr_db for fidelity in report.fidelity) > 25


def test_a_range_method_is_a_choice_of_the_command(model: Path, tmp_path: Path) -> None:
    (path, text), (_, entry) = blocks_of("A range method")
    (tmp_path / Path(path).name).write_text(text, encoding="utf-8")
    script = (
        "import qtool.calib.ranges as r\n"
        f"r.__path__.append({str(tmp_path)!r})\n"
        f"r.RANGE_METHODS.update({{{entry}}})\n"
        "from qtool.cli.app import main\n"
        "main()\n"
    )
    options = (
        "--calib-data",
        str(tmp_path / "data.npz"),
        "--effort",
        "fast",
        "--method",
        "octav",
        "--smallest",
        "--json",
    )
    command = [sys.executable, "-c", script, "quantize", str(model), *options, "--json"]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["method"] == "octav"


@pytest.mark.slow
def test_the_contract_of_range_methods_runs_over_the_new_one(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    (path, text), (_, entry) = blocks_of("A range method")
    (tmp_path / Path(path).name).write_text(text, encoding="utf-8")
    (tmp_path / "extension.py").write_text(
        f"import qtool.calib.ranges as r\nr.__path__.append({str(tmp_path)!r})\nr.RANGE_METHODS.update({{{entry}}})\n"
    )
    script = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]; import extension, pytest;"
        "sys.exit(pytest.main(['tests/contracts/test_range_methods.py', '-k', 'octav', '-p', 'no:cacheprovider']))"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "octav" not in result.stdout


def test_a_pass_keeps_what_the_model_computes(
    extend: Callable[[str], str], save: Callable[..., Path], run: Callable[..., Any], tmp_path: Path
) -> None:
    name = extend("A graph pass")
    text = "net (float[n, 3] x) => (float[n, 3] y, float[1, n, 3] z) { y = Pow(x, two)  z = Pow(x, spread) }"
    path = save("powers.onnx", text, two=np.float32(2.0), spread=np.full((1, 1, 1), 2.0, np.float32))
    assert name in {entry["name"] for entry in run("passes", "--json").json["passes"]}
    result = run("optimize", path, "--passes", name, "-o", "products.onnx")
    assert result.code == 0, result.err
    assert [node.op_type for node in onnx.load(tmp_path / "products.onnx").graph.node] == ["Mul", "Pow"]
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    expected = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})
    session = ort.InferenceSession(tmp_path / "products.onnx", providers=["CPUExecutionProvider"])
    for array, wanted in zip(session.run(None, {"x": x}), expected, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-6)
    again = run("optimize", "products.onnx", "--passes", name, "-o", "again.onnx", "--json")
    assert not again.json["passes"]


def test_a_weight_algorithm_is_tried_beside_the_others(
    extend: Callable[[str], str], model: Path, run: Callable[..., Any]
) -> None:
    name = extend("A weight algorithm")
    result = run("quantize", model, "--calib-data", "data.npz", "-o", "out.onnx", "--json")
    assert result.code == 0, result.err
    gains = {gain["correction"]: gain for gain in result.json["gains"]}
    assert {name, "GPTQ"} <= set(gains)
    fast = run("quantize", model, "--calib-data", "data.npz", "-o", "fast.onnx", "--effort", "fast", "--json")
    assert name not in {gain["correction"] for gain in fast.json["gains"]}


def test_a_weight_algorithm_lowers_the_error_of_products(extend: Callable[[str], str]) -> None:
    name = extend("A weight algorithm")
    from qtool.calib.granularity import PerChannel
    from qtool.plan import WeightPlan
    from qtool.weights.input_hessian import LayerInput
    from qtool.weights.rounding import WeightRounding

    rng = np.random.default_rng(7)
    inputs = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 20)) + 0.1 * rng.normal(size=(400, 20))
    weight = rng.normal(0, 0.1, (20, 6)).astype(np.float32)
    shape = {"kernel": (), "strides": (), "dilations": (), "pads": (), "groups": 1, "inputs": 20, "output_axis": 1}
    layer = LayerInput(node="product", tensor="x", weight="w", operator="MatMul", **shape)
    grid = Grid(bits=8, signed=True, symmetric=True)
    plan = WeightPlan(tensor="w", grid=grid, granularity=PerChannel(1), nodes=("product",))

    def error(*algorithms: str) -> float:
        rounding = WeightRounding([layer], {"product": (inputs.T @ inputs)[np.newaxis]}, algorithms=algorithms)
        found = rounding(weight, plan, bias=None)
        assert np.abs(found.integers).max() <= 127
        return float(np.linalg.norm(inputs @ (dequantize(found.integers, found.params) - weight)))

    assert error(name) < 0.6 * error()


def _flat(path: Path, header: str, tensors: list[np.ndarray]) -> Path:
    path.write_bytes(b"FLAT1\n" + header.encode() + b"\n" + b"".join(array.tobytes() for array in tensors))
    return path


def test_a_format_is_told_read_and_converted(
    extend: Callable[[str], str], run: Callable[..., Any], tmp_path: Path
) -> None:
    tensors = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, np.int8)]
    entries = [
        {"name": name, "dtype": str(array.dtype), "shape": array.shape}
        for name, array in zip("ab", tensors, strict=True)
    ]
    path = _flat(tmp_path / "weights.flat", json.dumps(entries), tensors)
    assert run("inspect", path).code == 2
    extend("A format")
    assert run("inspect", path, "--json").json["tensors"] == 2
    audit = run("audit", path, "--json")
    assert (audit.code, audit.json["safe"], audit.json["kind"]) == (0, True, "flat weights")
    assert run("convert", path, "--to", "safetensors", "-o", "weights.safetensors").code == 0
    stored = load_file(tmp_path / "weights.safetensors")
    assert stored.keys() == {"a", "b"}
    for name, array in zip("ab", tensors, strict=True):
        np.testing.assert_array_equal(stored[name], array)


def test_adapters_are_merged_into_the_new_format(
    extend: Callable[[str], str], run: Callable[..., Any], tmp_path: Path
) -> None:
    extend("A format")
    rng = np.random.default_rng(2)
    weight, first, second = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 6), (2, 6), (4, 2)))
    base = _flat(tmp_path / "base.flat", '[{"name": "layer.weight", "dtype": "float32", "shape": [4, 6]}]', [weight])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["layer"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    parts = {"A": first, "B": second}
    named = {f"base_model.model.layer.lora_{name}.weight": part for name, part in parts.items()}
    save_file(named, adapter / "adapter_model.safetensors")
    result = run("merge-lora", base, adapter, "--json")
    assert result.code == 0, result.err
    merged = load_file(tmp_path / "base.merged.safetensors")["layer.weight"]
    np.testing.assert_allclose(merged, weight + 2.0 * second @ first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "[",
        "{}x",
        '[{"name": "a", "dtype": "float32", "shape": [1000000000000]}]',
        '[{"name": "a", "dtype": "float32", "shape": [-1]}]',
        '[{"name": "a", "dtype": "object", "shape": [1]}]',
        '[{"name": 1, "dtype": "int8", "shape": [4]}]',
        '[{"name": "a", "dtype": [], "shape": [4]}]',
        '[{"name": "a", "dtype": "int8", "shape": [true, 4]}]',
        '[{"name": "a", "dtype": "int8", "shape": [2]}, {"name": "a", "dtype": "int8", "shape": [2]}]',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_of_the_new_format_is_refused(
    header: str, extend: Callable[[str], str], run: Callable[..., Any], tmp_path: Path
) -> None:
    extend("A format")
    path = _flat(tmp_path / "bad.flat", header, [np.zeros(4, np.int8)])
    audit = run("audit", path, "--json")
    assert (audit.code, audit.json["safe"]) == (1, False)
    result = run("convert", path, "--to", "safetensors", "-o", "out.safetensors")
    assert result.code == 2
    assert "save the weights again" in result.err
    assert not (tmp_path / "out.safetensors").exists()


def test_a_backend_quantizes_for_its_target(
    extend: Callable[[str], str], model: Path, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = extend("A backend")
    from qtool.backends import targets
    from qtool.backends.registry import backend_named

    # What importing the module does once the line stands in the file.
    for target, scheme in backend_named(name).targets.items():
        monkeypatch.setitem(targets.PRESETS, target, scheme)
    result = run("quantize", model, "--calib-data", "data.npz", "--target", name, "-o", "out.onnx", "--json")
    assert result.code == 0, result.err
    quantized = onnx.load(tmp_path / "out.onnx")
    assert {entry.key: entry.value for entry in quantized.metadata_props}["qtool.target"] == name
    # Every tensor stands between Q and DQ, the output too.
    assert sum(node.op_type == "QuantizeLinear" for node in quantized.graph.node) >= 3
    assert quantized.graph.node[-1].op_type == "DequantizeLinear"
    x = np.load(tmp_path / "data.npz")["x"]
    expected = ReferenceEvaluator(onnx.load(model)).run(None, {"x": x})[0]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(tmp_path / "out.onnx", options, providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": x})[0]
    assert 10 * np.log10(np.sum(expected**2) / np.sum((got - expected) ** 2)) > 20


def test_targets_of_backends_come_from_the_registry() -> None:
    script = (
        "import qtool.backends.registry as r; r.BACKENDS = {k: v for k, v in r.BACKENDS.items() if k != 'qnn'};"
        "from qtool.backends.targets import PRESETS; print(*PRESETS)"
    )
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["x86", "x86-vnni", "x86-avx2", "arm64", "tensorrt", "openvino", "openvino-avx2"]
