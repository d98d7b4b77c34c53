"""Merging into statically quantized graphs: activations that no longer fit their ranges."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import peft
import pytest
import torch
from torch import nn

from tests.lora.conftest import invoke
from tests.lora.graphs import export, merged_module, scales_of

pytestmark = pytest.mark.slow

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
    assert "times its range" in said
    assert "fix: give real inputs with --calib-data" in said
    assert not output.exists()


@pytest.mark.parametrize("options", [(), ("--smoothquant",), ("--cle",), ("--activations-symmetric",)])
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


def test_a_small_change_is_merged_without_data(train: Any, tmp_path: Path) -> None:
    module = Pictures().eval()
    case = Case(module, adapter(train, module, "a", 0.05), (3, 6, 6), tmp_path)
    base, output = case.quantized(), tmp_path / "merged.onnx"
    options = ("--base-weights", case.adapter.base, "-o", output)
    result = invoke("merge-lora", base, case.adapter.folder, *options)
    assert result.exit_code == 0, result.output
    assert "range" not in result.stderr
    assert scales_of(base) == scales_of(output)


def test_data_is_refused_where_there_are_no_ranges(pictures: Case, refused: Any, tmp_path: Path) -> None:
    weights, data = pictures.adapter.base, ("--calib-data", pictures.data)
    graph = export(pictures.module, torch.zeros(2, 3, 6, 6), tmp_path / "float.onnx", dynamo=False)
    said = refused(graph, pictures.adapter.folder, "--base-weights", weights, *data)
    assert "no activation ranges" in said
    said = refused(weights, pictures.adapter.folder, *data)
    assert "weights have none" in said
    said = refused(weights, pictures.adapter.folder, "--batch-size", 2)
    assert "--batch-size has no effect without --calib-data" in said
