"""Adapters in ONNX graphs: the weights are found whatever the exporter made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.lora.graphs import export, merged_module, run

NEAR = 1e-5


class Photo(nn.Module):
    """A convolution with a normalization, and two layers that begin with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.norm.weight.data.uniform_(0.5, 2)
        self.first = nn.Linear(8, 8, bias=False)
        self.second = nn.Linear(8, 8, bias=False)
        self.second.weight.data.copy_(self.first.weight.data)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.conv(image))).mean((2, 3))
        output: torch.Tensor = self.second(torch.relu(self.first(hidden)))
        return output


IMAGE = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(3))


def trained(train: Any, module: nn.Module, **settings: Any) -> Any:
    """Trains an adapter, and returns it with what the merged module computes."""
    return train(peft.LoraConfig(**{"r": 4, "lora_alpha": 8} | settings), module=module)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_normalizations_and_shared_tensors_are_respected(
    train: Any, merge_graph: Any, tmp_path: Path, dynamo: bool
) -> None:
    module = Photo().eval()
    adapter = trained(train, module, target_modules=["conv", "second"])
    graph = export(module, IMAGE, tmp_path / "base.onnx", dynamo=dynamo)
    merged = merge_graph(graph, adapter.folder, "--base-weights", adapter.base)
    with torch.no_grad():
        expected = merged_module(module, adapter.merged)(IMAGE).numpy()
    np.testing.assert_allclose(run(merged, IMAGE), expected, atol=NEAR)


def test_integers_are_found_and_rounded_anew(train: Any, merge_graph: Any, quantize: Any, tmp_path: Path) -> None:
    module = Photo().eval()
    nn.init.normal_(module.second.weight)
    adapter = trained(train, module, target_modules=["conv", "first"])
    graph = export(module, IMAGE, tmp_path / "base.onnx", dynamo=False)
    np.savez(tmp_path / "data.npz", x=torch.randn(64, 3, 9, 9, generator=torch.Generator().manual_seed(4)).numpy())
    # The ranges of activations stay, so the change has to be a small one.
    state = {name: value + 0.15 * (adapter.merged[name] - value) for name, value in load_file(adapter.base).items()}
    with torch.no_grad():
        expected = merged_module(module, state)(IMAGE).numpy()
        before = module(IMAGE).numpy()
    integers = quantize(graph, tmp_path / "data.npz")
    merged = merge_graph(integers, adapter.folder, "--base-weights", adapter.base, "--scale", "0.15")
    change = float(np.linalg.norm(expected - before))
    noise = float(np.linalg.norm(run(integers, IMAGE) - before))
    assert change > 3 * noise
    assert float(np.linalg.norm(run(merged, IMAGE) - expected)) < 2 * noise


def test_a_graph_of_other_weights_is_refused(train: Any, refused: Any, tmp_path: Path) -> None:
    module = Photo().eval()
    adapter = trained(train, module, target_modules=["conv"])
    graph = export(module, IMAGE, tmp_path / "base.onnx", dynamo=False)
    state = load_file(adapter.base)
    state["conv.weight"] = state["conv.weight"] + torch.randn(state["conv.weight"].shape)
    save_file(state, tmp_path / "other.safetensors")
    words = refused(graph, adapter.folder, "--base-weights", tmp_path / "other.safetensors")
    assert "does not hold the values of 'conv.weight'" in words
    assert not list(tmp_path.glob("*.merged.onnx"))


def test_names_alone_do_not_do_for_convolutions(train: Any, refused: Any, tmp_path: Path) -> None:
    module = Photo().eval()
    adapter = trained(train, module, target_modules=["conv"])
    graph = export(module, IMAGE, tmp_path / "base.onnx", dynamo=True)
    assert "may fold normalizations" in refused(graph, adapter.folder)


def test_the_places_in_the_graph_are_reported(train: Any, command: Any, tmp_path: Path) -> None:
    module = Photo().eval()
    adapter = trained(train, module, target_modules=["conv", "second"])
    graph = export(module, IMAGE, tmp_path / "base.onnx", dynamo=False)
    result = command(graph, adapter.folder, "--base-weights", adapter.base, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    places = {target["weight"]: target["places"] for target in json.loads(result.stdout)["targets"]}
    assert "scaled by a normalization" in places["conv.weight"][0]
    assert "transposed" in places["second.weight"][0]
    assert not list(tmp_path.glob("*.merged.onnx"))
