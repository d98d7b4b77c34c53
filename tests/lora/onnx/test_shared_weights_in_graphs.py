"""Merging into graphs that hold once what a checkpoint holds under two names."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.lora.conftest import invoke, randomize
from tests.lora.graphs import export, run

pytestmark = pytest.mark.slow

TOKENS = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(3))
IDS = torch.tensor([[1, 5, 7, 3]])


class Attention(nn.Module):
    """Queries and keys of the same weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.k.load_state_dict(self.q.state_dict())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.q(x) @ self.k(x).transpose(-1, -2)
        output: torch.Tensor = scores.softmax(-1) @ self.v(x)
        return output


class Speaker(nn.Module):
    """A head that is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.embed_tokens, self.mid = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 20, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.lm_head(torch.tanh(self.mid(self.embed_tokens(x))))
        return output


def adapted(module: nn.Module, folder: Path, **config: Any) -> nn.Module:
    """Saves an adapter for a module, and returns the module with it."""
    torch.manual_seed(1)
    model = peft.get_peft_model(copy.deepcopy(module), peft.LoraConfig(r=2, lora_alpha=4, **config))
    randomize((value for value in model.parameters() if value.requires_grad), 2)
    model.eval().save_pretrained(folder)
    return model


def form(graph: Path, name: str, folder: Path) -> Path:
    """Returns a graph as it is, or as a command of qtool makes it."""
    np.savez(folder / "data.npz", x=np.random.default_rng(0).standard_normal((20, 5, 8)).astype(np.float32))
    commands = {
        "optimized": ("optimize",),
        "dynamic": ("quantize", "--scheme", "dynamic", "--target", "x86-vnni"),
        "static": (
            *("quantize", "--calib-data", folder / "data.npz", "--smallest", "--effort", "fast"),
            *("--target", "x86-vnni"),
        ),
    }
    if name == "exported":
        return graph
    output = folder / f"{name}.onnx"
    result = invoke(commands[name][0], graph, *commands[name][1:], "-o", output)
    assert result.exit_code == 0, result.output
    return output


@pytest.mark.parametrize("name", ["exported", "optimized", "dynamic", "static"])
@pytest.mark.parametrize("dynamo", [True, False], ids=["new exporter", "old exporter"])
@pytest.mark.parametrize("target", ["q", "k"])
def test_equal_queries_and_keys_are_told_apart_or_refused(tmp_path: Path, name: str, dynamo: bool, target: str) -> None:
    module = Attention().eval()
    live = adapted(module, tmp_path / "adapter", target_modules=[target])(TOKENS).detach().numpy()
    before = module(TOKENS).detach().numpy()
    graph = form(export(module, TOKENS, tmp_path / "base.onnx", dynamo=dynamo), name, tmp_path)
    base, output = tmp_path / "base.safetensors", tmp_path / "merged.onnx"
    save_file({key: value.clone() for key, value in module.state_dict().items()}, base)
    result = invoke("merge-lora", graph, tmp_path / "adapter", "--base-weights", base, "-o", output)
    if dynamo or name in ("optimized", "static"):
        assert result.exit_code == 2, result.output
        assert "fix: merge into the checkpoint and export it again" in " ".join(result.stderr.split())
        assert "--" not in result.stderr
        assert not output.exists()
    else:
        assert result.exit_code == 0, result.output
        distance = np.abs(run(output, TOKENS) - live).max()
        assert distance < (1e-5 if name == "exported" else 0.2 * np.abs(live - before).max())


TARGETS: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "both": {"target_modules": ["lm_head", "embed_tokens", "mid"]},
    "neither": {"target_modules": ["mid"]},
}


@pytest.mark.parametrize("dynamo", [True, False], ids=["new exporter", "old exporter"])
@pytest.mark.parametrize("name", TARGETS)
def test_graphs_untie_what_an_adapter_changes_alone(tmp_path: Path, name: str, dynamo: bool) -> None:
    module = Speaker().eval()
    live = adapted(module, tmp_path / "adapter", **TARGETS[name])(IDS).detach().numpy()
    graph = export(module, IDS, tmp_path / "base.onnx", dynamo=dynamo)
    torch.save(module.state_dict(), tmp_path / "base.pth")
    output = tmp_path / "merged.onnx"
    options = ("--base-weights", tmp_path / "base.pth", "-o", output)
    result = invoke("merge-lora", graph, tmp_path / "adapter", *options)
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(run(output, IDS), live, atol=1e-5)


def test_graphs_do_not_grow_for_added_tokens(tmp_path: Path) -> None:
    module = Speaker().eval()
    graph = export(module, IDS, tmp_path / "base.onnx", dynamo=False)
    torch.save(module.state_dict(), tmp_path / "base.pth")
    larger = Speaker()
    larger.embed_tokens = nn.Embedding(23, 8)
    larger.lm_head = nn.Linear(8, 23, bias=False)
    adapted(larger, tmp_path / "adapter", target_modules=["mid"], modules_to_save=["embed_tokens", "lm_head"])
    options = ("--base-weights", tmp_path / "base.pth", "-o", tmp_path / "merged.onnx")
    result = invoke("merge-lora", graph, tmp_path / "adapter", *options)
    assert result.exit_code == 2, result.output
    said = " ".join(result.stderr.split())
    assert "the adapter was trained with added tokens" in said
    assert "fix: merge into the checkpoint and export it again" in said
