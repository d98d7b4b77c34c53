"""Merging into graphs whose weights fit sums of 16 bits, on x86 without VNNI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import peft
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from qtool.backends.onnxruntime_cpu.exact_sums import with_exact_sums
from qtool.lora.onnx import requantizing
from tests.lora.conftest import invoke
from tests.lora.graphs import export, merged_module, run


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down(torch.relu(self.up(x)))
        return output


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.up, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down(torch.relu(self.up(x)))
        return output


EXAMPLES = {Perceptron: torch.zeros(2, 16), Pictures: torch.zeros(2, 3, 6, 6)}


def samples(module: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(32, *EXAMPLES[type(module)].shape[1:], generator=generator)


def quantized(module: nn.Module, tmp_path: Path, target: str, scheme: str) -> Path:
    """Quantizes a module for a processor."""
    path = export(module, EXAMPLES[type(module)], tmp_path / "float.onnx", dynamo=False)
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, path)
    np.savez(tmp_path / "data.npz", x=samples(module).numpy())
    data = ("--calib-data", tmp_path / "data.npz", "--effort", "fast", "--smallest") if scheme == "static" else ()
    output = tmp_path / f"{target}.onnx"
    options = ("--scheme", scheme, "--target", target, *data, "-o", output)
    result = invoke("quantize", path, *options)
    assert result.exit_code == 0, result.output
    return output


def decibels(live: nn.Module, path: Path, x: torch.Tensor) -> float:
    onnx.save(ir.to_proto(with_exact_sums(ir.load(path))), path)
    expected = live(x).detach().numpy()
    return float(10 * np.log10((expected**2).sum() / ((expected - run(path, x)) ** 2).sum()))


@pytest.mark.parametrize("policy", ["grow", "keep", "recompute"])
@pytest.mark.parametrize(
    ("module", "scheme"), [(Perceptron(), "static"), (Perceptron(), "dynamic"), (Pictures(), "static")]
)
def test_merged_weights_stay_within_sums_of_16_bits(
    train: Any, tmp_path: Path, monkeypatch: Any, module: nn.Module, scheme: str, policy: str
) -> None:
    module = module.eval()
    adapter = train(peft.LoraConfig(r=2, lora_alpha=2, target_modules=["up", "down"]), module=module)
    graph = quantized(module, tmp_path, "x86-avx2", scheme)
    data = ("--calib-data", tmp_path / "data.npz") if scheme == "static" else ()
    weights = ("--base-weights", adapter.base, "--scales", policy, *data)
    bounded, free = tmp_path / "bounded.onnx", tmp_path / "free.onnx"
    result = invoke("merge-lora", graph, adapter.folder, *weights, "-o", bounded)
    assert result.exit_code == 0, result.output
    assert "16 bits" not in result.stderr
    assert invoke("verify", graph, "--target", "x86-avx2").exit_code == 0
    assert invoke("verify", bounded, "--target", "x86-avx2").exit_code == 0
    monkeypatch.setattr(
        requantizing, "within_bound", lambda node, stored, exact, integers, scale, rules: (integers, scale)
    )
    result = invoke("merge-lora", graph, adapter.folder, *weights, "-o", free)
    assert result.exit_code == 0, result.output
    assert invoke("verify", free, "--target", "x86-avx2").exit_code == 1
    live, x = merged_module(module, adapter.merged), samples(module)
    # Scales that may not grow cut off what is too large, with or without the bound.
    assert decibels(live, bounded, x) > decibels(live, free, x) - (5 if policy == "keep" else 3)


def test_models_for_processors_with_vnni_keep_all_bits(train: Any, tmp_path: Path, monkeypatch: Any) -> None:
    module = Perceptron().eval()
    adapter = train(peft.LoraConfig(r=2, target_modules=["up"]), module=module)
    graph = quantized(module, tmp_path, "x86-vnni", "dynamic")
    weights = ("--base-weights", adapter.base)
    assert invoke("merge-lora", graph, adapter.folder, *weights, "-o", tmp_path / "one.onnx").exit_code == 0
    monkeypatch.setattr(
        requantizing, "within_bound", lambda node, stored, exact, integers, scale, rules: (integers, scale)
    )
    assert invoke("merge-lora", graph, adapter.folder, *weights, "-o", tmp_path / "other.onnx").exit_code == 0
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()


def test_sums_that_no_longer_fit_are_told_where_other_weights_never_did(train: Any, tmp_path: Path) -> None:
    module = Perceptron().eval()
    adapter = train(peft.LoraConfig(r=2, target_modules=["up"]), module=module)
    graph = quantized(module, tmp_path, "x86-avx2", "dynamic")
    model = onnx.load(graph)
    (last,) = [node for node in model.graph.node if node.op_type == "MatMulInteger" and "down" in node.name]
    for tensor in model.graph.initializer:
        if tensor.name == last.input[1]:
            integers = numpy_helper.to_array(tensor).copy()
            integers[:2] = 127
            tensor.CopyFrom(numpy_helper.from_array(integers, tensor.name))
    onnx.save(model, graph)
    result = invoke("merge-lora", graph, adapter.folder, "--base-weights", adapter.base, "-o", tmp_path / "merged.onnx")
    assert result.exit_code == 0, result.output
    assert "a layer that 16 bits held before the change can overflow now on x86 without VNNI" in (
        " ".join(result.stderr.split())
    )
