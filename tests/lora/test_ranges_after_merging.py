"""Merging into statically quantized graphs: activations that no longer fit their ranges."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from calib.affine import Range
from qtool.lora.activation_ranges import grown, growth
from tests.lora.conftest import invoke
from tests.lora.graphs import export, merged_module

Array = np.ndarray[Any, np.dtype[Any]]


class Pictures(nn.Module):
    """Convolutions, and channels of the first one that reach unlike far."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)
        with torch.no_grad():
            factors = torch.logspace(-0.3, 0.3, 8)
            self.a.weight.mul_(factors[:, None, None, None])
            self.b.weight.div_(factors[None, :, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        output: torch.Tensor = self.head(x.mean((2, 3)))
        return output


class Attention(nn.Module):
    """One head behind a normalization."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.norm = nn.LayerNorm(16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        scores = (self.q(h) @ self.k(h).transpose(-1, -2)) * 0.25
        output: torch.Tensor = x + self.o(scores.softmax(-1) @ self.v(h))
        return output


class Case:
    """A module with its adapter, and the graphs that come of them."""

    def __init__(self, module: nn.Module, adapter: Any, shape: tuple[int, ...], folder: Path) -> None:
        self.module, self.adapter, self.folder = module, adapter, folder
        self.samples = np.random.default_rng(4).standard_normal((40, *shape)).astype(np.float32)
        self.data = folder / "data.npz"
        np.savez(self.data, x=self.samples)
        self.live = peft.PeftModel.from_pretrained(copy.deepcopy(module), adapter.folder).eval()

    def quantized(self, *options: str) -> Path:
        """Quantizes the base."""
        return self._quantized(self.module, "base", *options)

    def quantized_after_merging(self, *options: str) -> Path:
        """Quantizes what torch merged."""
        return self._quantized(merged_module(self.module, self.adapter.merged), "right", *options)

    def _quantized(self, module: nn.Module, name: str, *options: str) -> Path:
        graph = export(module, torch.from_numpy(self.samples[:2]), self.folder / f"{name}.onnx", dynamo=False)
        graph = free_batch(graph)
        output = self.folder / f"{name}.int8.onnx"
        settings = ("--effort", "fast", "--smallest", "--target", "x86-vnni", "--scheme", "static", *options)
        result = invoke("quantize", graph, "--calib-data", self.data, *settings, "-o", output)
        assert result.exit_code == 0, result.output
        return output

    def decibels(self, path: Path) -> float:
        """Returns how near a graph is to the live adapter; node by node, which no kernel's sums disturb."""
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        got = session.run(None, {"x": self.samples})[0]
        with torch.no_grad():
            expected = self.live(torch.from_numpy(self.samples)).numpy()
        return float(10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum()))


def free_batch(path: Path) -> Path:
    """Lets the first axis of the input and the output be free."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


def adapter(train: Any, module: nn.Module, target: str, factor: float) -> Any:
    """Trains an adapter on one layer, whose change has ``factor`` times the norm of that layer's weight."""
    norm = float(torch.linalg.vector_norm(module.state_dict()[f"{target}.weight"]))

    def build(*, alpha: float, name: str) -> Any:
        config = peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=[target], lora_dropout=0.0)
        return train(config, name=name, module=module)

    trial = build(alpha=1.0, name="trial")
    key = f"{target}.weight"
    change = float(torch.linalg.vector_norm(trial.merged[key] - module.state_dict()[key]))
    return build(alpha=factor * norm / change, name="adapter")


@pytest.fixture
def pictures(train: Any, tmp_path: Path) -> Case:
    module = Pictures().eval()
    return Case(module, adapter(train, module, "a", 3.0), (3, 6, 6), tmp_path)


@pytest.fixture
def attention(train: Any, tmp_path: Path) -> Case:
    module = Attention().eval()
    return Case(module, adapter(train, module, "v", 4.0), (5, 16), tmp_path)


@pytest.mark.parametrize("name", ["pictures", "attention"])
def test_ranges_that_no_longer_fit_are_refused_without_data(name: str, request: Any, tmp_path: Path) -> None:
    case = request.getfixturevalue(name)
    output = tmp_path / "merged.onnx"
    weights = ("--base-weights", case.adapter.base)
    result = invoke("merge-lora", case.quantized(), case.adapter.folder, *weights, "-o", output)
    assert result.exit_code == 2, result.output
    said = " ".join(result.stderr.split())
    assert "times as far as its range" in said
    assert "fix: give real inputs with --calib-data" in said
    assert not output.exists()


@pytest.mark.parametrize("options", [(), ("--smoothing",), ("--equalization",), ("--activations-symmetric",)])
@pytest.mark.parametrize("name", ["pictures", "attention"])
def test_with_data_merging_is_about_as_good_as_quantizing_afterwards(
    name: str, options: tuple[str, ...], request: Any, merge_graph: Any
) -> None:
    case = request.getfixturevalue(name)
    base, right = case.quantized(*options), case.quantized_after_merging(*options)
    merged = merge_graph(base, case.adapter.folder, "--base-weights", case.adapter.base, "--calib-data", case.data)
    assert case.decibels(merged) > case.decibels(right) - 3
    assert case.decibels(base) < case.decibels(merged) - 10
    assert onnx.load(merged).graph.node == onnx.load(base).graph.node


def test_the_report_says_which_ranges_were_set_again(pictures: Case, tmp_path: Path) -> None:
    base, output = pictures.quantized("--activations-symmetric"), tmp_path / "merged.onnx"
    options = ("--base-weights", pictures.adapter.base, "--calib-data", pictures.data, "--json", "-o", output)
    result = invoke("merge-lora", base, pictures.adapter.folder, *options)
    assert result.exit_code == 0, result.output
    ranges = json.loads(result.stdout)["ranges"]
    scales = [scales_of(path) for path in (base, output)]
    assert ranges
    for found in ranges:
        assert found["after"][0] <= found["before"][0]
        assert found["after"][1] >= found["before"][1]
        old, new = (scale[found["tensor"]] for scale in scales)
        np.testing.assert_allclose(new / old, found["growth"], rtol=1e-5)


def scales_of(path: Path) -> dict[str, float]:
    """Returns the scale of each activation by name."""
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {node.input[0]: float(stored[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear"}


def test_a_small_change_is_merged_without_data(train: Any, tmp_path: Path) -> None:
    module = Pictures().eval()
    case = Case(module, adapter(train, module, "a", 0.05), (3, 6, 6), tmp_path)
    base, output = case.quantized(), tmp_path / "merged.onnx"
    options = ("--base-weights", case.adapter.base, "-o", output)
    result = invoke("merge-lora", base, case.adapter.folder, *options)
    assert result.exit_code == 0, result.output
    assert "range" not in result.stderr
    assert scales_of(base) == scales_of(output)


def test_what_shrinks_again_is_not_refused(merge_graph: Any, tmp_path: Path) -> None:
    folder, base = lora(tmp_path / "adapter", -0.75)
    merge_graph(qdq(tmp_path / "g.onnx"), folder, "--base-weights", base, "--unmerge", "--scale", 2)


# One layer between integers: x of (n, 4), y of (n, 4); the second grid shares the scale of the first where it is told.
def qdq(path: Path, *, reshape: bool = False, shared: bool = False) -> Path:
    weight = np.eye(4, dtype=np.float32) + 0.5
    step = np.float32(np.abs(weight).max() / 127)
    stored = {
        "w": np.rint(weight / step).astype(np.int8),
        "w_scale": np.asarray(step),
        "b": np.asarray([1, -2, 3, 1], np.int32),
        "b_scale": np.asarray(step * np.float32(0.03)),
        "h_scale": np.asarray(0.03, np.float32),
        "h_zero": np.asarray(128, np.uint8),
        "y_scale": np.asarray(0.05, np.float32),
        "up": np.eye(4, dtype=np.float32),
        "shape": np.asarray([-1, 3, 4], np.int64),
    }
    last = "h_scale" if shared else "y_scale"
    first = [helper.make_node("Reshape", ["x", "shape"], ["x3"])] if reshape else []
    nodes = [
        *first,
        helper.make_node("MatMul", ["x3" if reshape else "x", "up"], ["h"], name="up"),
        *([helper.make_node("Reshape", ["h", "flat"], ["h2"])] if reshape else []),
        helper.make_node("QuantizeLinear", ["h2" if reshape else "h", "h_scale", "h_zero"], ["hq"]),
        helper.make_node("DequantizeLinear", ["hq", "h_scale", "h_zero"], ["hd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["W"]),
        helper.make_node("DequantizeLinear", ["b", "b_scale"], ["B"]),
        helper.make_node("Gemm", ["hd", "W", "B"], ["g"], transB=1),
        helper.make_node("QuantizeLinear", ["g", last, "h_zero"], ["gq"]),
        helper.make_node("DequantizeLinear", ["gq", last, "h_zero"], ["y"]),
    ]
    stored["flat"] = np.asarray([-1, 4], np.int64)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def lora(folder: Path, factor: float) -> tuple[Path, Path]:
    """Writes weights, and an adapter that adds ``factor`` times the first layer to it."""
    folder.mkdir()
    save_file({"up.weight": torch.eye(4)}, folder / "base.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["up"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    matrices = {"lora_A": torch.eye(4), "lora_B": torch.eye(4) * factor}
    save_file(
        {f"base_model.model.up.{name}.weight": value for name, value in matrices.items()},
        folder / "adapter_model.safetensors",
    )
    return folder, folder / "base.safetensors"


@pytest.mark.parametrize(
    ("factor", "code", "said"), [(0.1, 0, None), (0.5, 0, "warning"), (0.9, 0, "warning"), (1.2, 2, "error")]
)
def test_growth_is_passed_told_or_refused(tmp_path: Path, factor: float, code: int, said: str | None) -> None:
    folder, base = lora(tmp_path / "adapter", factor)
    output = tmp_path / "merged.onnx"
    result = invoke("merge-lora", qdq(tmp_path / "g.onnx"), folder, "--base-weights", base, "-o", output)
    assert result.exit_code == code, result.output
    assert output.exists() == (code == 0)
    assert (said is None) == ("its range" not in result.stderr)
    if said is not None:
        assert f"{said}: " in result.stderr
        times = re.search(r"reaches ([0-9.]+) times as far", " ".join(result.stderr.split()))
        assert times
        assert float(times[1]) == pytest.approx(1 + factor, abs=0.02)


@pytest.mark.parametrize("shared", [False, True])
def test_biases_and_grids_of_one_scale_follow(tmp_path: Path, merge_graph: Any, shared: bool) -> None:
    graph = qdq(tmp_path / "g.onnx", shared=shared)
    folder, base = lora(tmp_path / "adapter", 3.0)
    x = np.random.default_rng(0).uniform(-3, 3, (16, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    merged = merge_graph(graph, folder, "--base-weights", base, "--calib-data", tmp_path / "x.npz")
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (graph, merged)
    )
    for name in before:
        assert after[name].shape == before[name].shape
        assert after[name].dtype == before[name].dtype
    exact = 4 * x @ (before["w"].T * before["w_scale"].astype(np.float64)) + before["b"] * before["b_scale"]
    reach = 127 * after["h_scale"]
    np.testing.assert_allclose(reach, max(4 * 127 * 0.03, np.abs(exact).max() if shared else 0), rtol=0.02)
    assert after["h_zero"] == before["h_zero"]
    np.testing.assert_allclose(after["b_scale"], after["h_scale"] * after["w_scale"], rtol=1e-5)
    floats = [part["b"] * part["b_scale"].astype(np.float64) for part in (before, after)]
    np.testing.assert_allclose(floats[1], floats[0], atol=after["b_scale"])
    got = onnxruntime.InferenceSession(merged, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    step = after["h_scale" if shared else "y_scale"]
    assert np.abs(got - exact).max() < step + 4 * after["h_scale"]


def test_graphs_that_do_not_run_on_random_inputs_are_told(tmp_path: Path) -> None:
    folder, base = lora(tmp_path / "adapter", 3.0)
    graph, output = qdq(tmp_path / "g.onnx", reshape=True), tmp_path / "merged.onnx"
    result = invoke("merge-lora", graph, folder, "--base-weights", base, "-o", output)
    assert result.exit_code == 0, result.output
    assert "nothing shows whether the ranges of activations still fit" in " ".join(result.stderr.split())
    np.savez(tmp_path / "x.npz", x=np.ones((6, 4), np.float32))
    options = ("--calib-data", tmp_path / "x.npz", "--batch-size", 3, "-o", output, "--force")
    result = invoke("merge-lora", graph, folder, "--base-weights", base, *options)
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(scales_of(output)["h2"], 4 * 0.03, rtol=1e-5)


def test_data_is_refused_where_there_are_no_ranges(pictures: Case, refused: Any, tmp_path: Path) -> None:
    weights, data = pictures.adapter.base, ("--calib-data", pictures.data)
    graph = export(pictures.module, torch.zeros(2, 3, 6, 6), tmp_path / "float.onnx", dynamo=False)
    said = refused(graph, pictures.adapter.folder, "--base-weights", weights, *data)
    assert "no ranges of activations" in said
    said = refused(weights, pictures.adapter.folder, *data)
    assert "weights have none" in said
    said = refused(weights, pictures.adapter.folder, "--batch-size", 2)
    assert "--batch-size says nothing without --calib-data" in said


ends = st.floats(0.0, 1e3, allow_nan=False, width=32)


@given(ends, ends, ends, ends, ends, ends, st.booleans())
def test_ranges_never_shrink_and_hold_what_grew(
    low: float, high: float, first: float, second: float, third: float, fourth: float, symmetric: bool
) -> None:
    high = max(high, 0.01)
    span = Range(-high, high) if symmetric else Range(-low, high)
    before, after = Range(-first, second), Range(-third, fourth)
    wider = grown(span, before, after, symmetric=symmetric, keeps_zero=False)
    assert wider.low <= span.low
    assert wider.high >= span.high
    assert growth(span, wider) >= 1
    if span.low <= before.low and before.high <= span.high:
        assert wider.low <= after.low
        assert wider.high >= after.high * (1 - 1e-9)
    if third <= first and fourth <= second:
        assert wider == span


def test_a_range_that_stands_for_a_relu_still_begins_at_zero() -> None:
    wider = grown(Range(0, 1), Range(-2, 1), Range(-8, 3), symmetric=False, keeps_zero=True)
    assert wider == Range(0, 3)
