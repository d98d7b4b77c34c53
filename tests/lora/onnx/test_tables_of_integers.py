"""Adapters of embeddings whose tables a graph stores in integers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import peft
import pytest
import torch
from torch import nn

from qtool.backends.onnxruntime_cpu.exact_sums import with_exact_sums
from tests.lora.conftest import invoke, randomize
from tests.lora.graphs import export, run

IDS = torch.randint(0, 1100, (3, 12), generator=torch.Generator().manual_seed(3))


class Speaker(nn.Module):
    """An embedding, a layer and a head, which is the embedding or not."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.embed_tokens, self.mid = nn.Embedding(1100, 16), nn.Linear(16, 16)
        self.lm_head = nn.Linear(16, 1100, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.lm_head(torch.tanh(self.mid(self.embed_tokens(x))))
        return output


def decibels(expected: Any, got: Any) -> float:
    return float(10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum()))


def exact(path: Path) -> Path:
    """Lets every processor compute a graph as one with VNNI does."""
    onnx.save(ir.to_proto(with_exact_sums(ir.load(path))), path)
    return path


@pytest.mark.parametrize("scheme", ["dynamic", "static"])
@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
@pytest.mark.parametrize("targets", [["embed_tokens"], ["embed_tokens", "lm_head"], ["lm_head"]])
def test_adapters_merge_into_tables_of_integers(tmp_path: Path, scheme: str, tied: bool, targets: list[str]) -> None:
    module = Speaker(tied=tied).eval()
    model = peft.get_peft_model(copy.deepcopy(module), peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets))
    randomize((value for value in model.parameters() if value.requires_grad), 2, 0.2)
    model.eval().save_pretrained(tmp_path / "adapter")
    graph = export(module, IDS, tmp_path / "base.onnx", dynamo=False)
    torch.save(module.state_dict(), tmp_path / "base.pth")
    data = ("--calib-data", tmp_path / "data.npz", "--batch-size", 1)
    options = (*data, "--smallest", "--effort", "fast") if scheme == "static" else ()
    quantized, merged = tmp_path / "quantized.onnx", tmp_path / "merged.onnx"
    np.savez(tmp_path / "data.npz", x=IDS.numpy())
    target = ("--target", "x86-vnni", "--scheme", scheme)
    result = invoke("quantize", graph, *target, *options, "-o", quantized)
    assert result.exit_code == 0, result.output
    assert any(
        node.op_type == "DequantizeLinear" and producer.op_type == "Gather"
        for node in onnx.load(quantized).graph.node
        for producer in onnx.load(quantized).graph.node
        if producer.output[0] == node.input[0]
    )
    settings = ("--base-weights", tmp_path / "base.pth", *(data if scheme == "static" else ()))
    result = invoke("merge-lora", quantized, tmp_path / "adapter", *settings, "-o", merged)
    assert result.exit_code == 0, result.output
    before, live = module(IDS).detach().numpy(), model(IDS).detach().numpy()
    assert decibels(live, run(exact(merged), IDS)) > decibels(before, run(exact(quantized), IDS)) - 3
