"""Adapters merge into graphs whose weights qtool scaled, folded, transposed, smoothed or quantized."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import peft
import pytest
import torch
from onnx_ir.passes.common import ShapeInferencePass
from safetensors.torch import load_file, save_file
from torch import nn

from qtool.backends.onnxruntime_cpu.exact_sums import with_exact_sums
from qtool.graph.constants import add_constant
from qtool.graph.weight_records import Scaled, record_of, record_steps
from qtool.passes.quantization.fold_affine import FoldAffine
from qtool.passes.quantization.fold_into_next import FoldIntoNext
from qtool.passes.quantization.fold_scales_back import FoldScalesBack
from qtool.passes.quantization.matmul_add_to_gemm import MatMulAddToGemm
from qtool.weights.channel_scaling import scale_channels
from qtool.weights.scaling_regions import scaling_regions
from qtool.weights.smoothquant import Smoothable, smooth
from tests.lora.conftest import invoke
from tests.lora.graphs import merged_module, run

NEAR = 2e-5


class Attention(nn.Module):
    """Scores of queries and keys that are divided, behind a normalization."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        scores = (self.q(h) @ self.k(h).transpose(-1, -2)) * 0.354
        return self.down(torch.relu(self.up(scores.softmax(-1) @ self.v(h))))


class Pictures(nn.Module):
    """Pixels that are brought to a range, and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.norm(self.b(torch.relu(self.a((x - 0.4) * 3.0))))
        return output


TOKENS = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(3))
PIXELS = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(3))


def smoothed(model: ir.Model) -> None:
    layers = tuple(node.name or "" for node in model.graph if node.op_type == "MatMul")
    tensor = next(node.outputs[0].name for node in model.graph if node.op_type == "LayerNormalization")
    readers = tuple(n.name or "" for n in model.graph if n.name in layers and n.inputs[0].name == tensor)  # type: ignore[union-attr]
    assert readers
    smooth(model, [Smoothable(tensor=tensor or "", layers=readers, channels=8)], {tensor or "": np.linspace(0.5, 3, 8)})


def equalized(model: ir.Model) -> None:
    regions = scaling_regions(model)
    assert regions
    scale_channels(model, [(region, np.linspace(0.3, 2, region.channels)) for region in regions])


def apply(*passes: Any) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        for each in passes:
            each(model)

    return change


PASSES: dict[str, Callable[[ir.Model], None]] = {
    "scales-back": apply(FoldScalesBack()),
    "SmoothQuant": smoothed,
    "scales-back, smoothquant and gemm": apply(FoldScalesBack(), smoothed, MatMulAddToGemm()),
}


def exported(module: nn.Module, example: torch.Tensor, path: Path) -> Path:
    """Exports without folding normalizations, which is for the passes under test."""
    torch.onnx.export(
        module.eval(),
        (example,),
        path,
        input_names=["x"],
        output_names=["y"],
        dynamo=False,
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=True,
    )
    return path


def changed(path: Path, change: Callable[[ir.Model], None]) -> Path:
    model = ir.load(path)
    ShapeInferencePass()(model)
    change(model)
    onnx.save(ir.to_proto(model), path)
    return path


@pytest.mark.parametrize("target", ["q", "k", "v", "up", "down"])
@pytest.mark.parametrize("name", PASSES)
def test_merging_after_a_pass_equals_merging_before(
    train: Any, merge_graph: Any, tmp_path: Path, name: str, target: str
) -> None:
    module = Attention().eval()
    adapter = train(peft.LoraConfig(r=2, lora_alpha=4, target_modules=[target], lora_bias=True), module=module)
    graph = changed(exported(module, TOKENS, tmp_path / "base.onnx"), PASSES[name])
    np.testing.assert_allclose(run(graph, TOKENS), module(TOKENS).detach().numpy(), atol=NEAR)
    merged = merge_graph(graph, adapter.folder, "--base-weights", adapter.base)
    expected = merged_module(module, adapter.merged)(TOKENS).detach().numpy()
    np.testing.assert_allclose(run(merged, TOKENS), expected, atol=NEAR * np.abs(expected).max())


@pytest.mark.parametrize("target", ["a", "b"])
@pytest.mark.parametrize(
    "change",
    [apply(FoldIntoNext()), apply(FoldAffine()), equalized, apply(FoldAffine(), FoldIntoNext(), equalized)],
    ids=["into-next", "affine", "cross-layer equalization", "all"],
)
def test_merging_into_convolutions_after_passes_equals_merging_before(
    merge_graph: Any, tmp_path: Path, change: Callable[[ir.Model], None], target: str
) -> None:
    module = Pictures().eval()
    base, folder = tmp_path / "base.safetensors", tmp_path / "adapter"
    save_file(module.state_dict(), base)
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "modules_to_save": [target]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    state = load_file(base)
    saved = {}
    for part in ("weight", "bias"):
        key = f"{target}.{part}"
        state[key] = state[key] + 0.2 * torch.randn(state[key].shape, generator=torch.Generator().manual_seed(1))
        saved[f"base_model.model.{key}"] = state[key]
    save_file(saved, folder / "adapter_model.safetensors")
    graph = changed(exported(module, PIXELS, tmp_path / "base.onnx"), change)
    merged = merge_graph(graph, folder, "--base-weights", base)
    expected = merged_module(module, state)(PIXELS).detach().numpy()
    np.testing.assert_allclose(run(merged, PIXELS), expected, atol=NEAR * np.abs(expected).max())


@pytest.mark.parametrize("target", ["q", "v", "down"])
def test_optimized_graphs_take_adapters(train: Any, merge_graph: Any, tmp_path: Path, target: str) -> None:
    module = Attention().eval()
    adapter = train(peft.LoraConfig(r=2, target_modules=[target]), module=module)
    graph = exported(module, TOKENS, tmp_path / "base.onnx")
    result = invoke("optimize", graph, "-o", tmp_path / "optimized.onnx")
    assert result.exit_code == 0, result.output
    merged = merge_graph(tmp_path / "optimized.onnx", adapter.folder, "--base-weights", adapter.base)
    expected = merged_module(module, adapter.merged)(TOKENS).detach().numpy()
    np.testing.assert_allclose(run(merged, TOKENS), expected, atol=NEAR * np.abs(expected).max())


@pytest.mark.parametrize("target", ["q", "v", "down"])
def test_dynamically_quantized_graphs_take_adapters(train: Any, merge_graph: Any, tmp_path: Path, target: str) -> None:
    module = Attention().eval()
    adapter = train(peft.LoraConfig(r=2, target_modules=[target], lora_bias=True), module=module)
    graph = exported(module, TOKENS, tmp_path / "base.onnx")
    result = invoke("quantize", graph, "--scheme", "dynamic", "--target", "x86-vnni", "-o", tmp_path / "dynamic.onnx")
    assert result.exit_code == 0, result.output
    assert "MatMulInteger" in {node.op_type for node in onnx.load(tmp_path / "dynamic.onnx").graph.node}
    merged = merge_graph(tmp_path / "dynamic.onnx", adapter.folder, "--base-weights", adapter.base)
    live = merged_module(module, adapter.merged)(TOKENS).detach().numpy()
    before = module(TOKENS).detach().numpy()
    # As a processor with VNNI computes them, on every one.
    for path in (tmp_path / "dynamic.onnx", merged):
        onnx.save(ir.to_proto(with_exact_sums(ir.load(path))), path)
    noise = np.linalg.norm(run(tmp_path / "dynamic.onnx", TOKENS) - before) / np.linalg.norm(before)
    assert np.linalg.norm(run(merged, TOKENS) - live) < 4 * noise * np.linalg.norm(live)


def test_steps_are_undone_and_survive_a_file(tmp_path: Path) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 17}, name="g")
    weights = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    source = add_constant(graph, "w", weights)
    factors = np.array([[2.0], [3.0], [0.5]])
    made = add_constant(graph, "w_scaled", weights * factors.astype(np.float32))
    record_steps(made, source, Scaled(factors=factors, outputs=factors.reshape(-1)))
    onnx.save(ir.to_proto(ir.Model(graph, ir_version=8)), tmp_path / "g.onnx")
    record = record_of(ir.load(tmp_path / "g.onnx").graph.initializers["w_scaled"])
    assert record is not None
    assert record.name == "w"
    undone = record.undo(weights * factors)
    assert undone is not None
    np.testing.assert_allclose(undone, weights)
    np.testing.assert_allclose(record.output_factors, [2.0, 3.0, 0.5])


@pytest.mark.parametrize(
    "text", ["{}", "[", '{"name": "w", "shape": [3, 5], "steps": []}', '{"name": 1, "shape": "x"}']
)
def test_records_that_do_not_fit_their_tensor_count_for_nothing(text: str) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 17}, name="g")
    value = add_constant(graph, "w", np.ones((3, 4), np.float32))
    value.metadata_props["qtool.weight"] = text
    assert record_of(value) is None
