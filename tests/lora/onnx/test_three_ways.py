"""One adapter in weights, in the graph of torch's exporter and in that of the older one: the outputs are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertModel

from tests.lora.graphs import export, merged_module, run

pytestmark = pytest.mark.slow

NEAR = 1e-5
IDS = torch.arange(8)[None] * 3


class Encoder(nn.Module):
    """BERT with one output and an input of fixed length."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        self.bert = BertModel(BertConfig(**settings, vocab_size=60, max_position_embeddings=16))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.bert(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return output


@pytest.fixture
def trained(train: Any) -> Any:
    layers = ["query", "value", "dense", "word_embeddings"]
    return train(peft.LoraConfig(r=4, lora_alpha=8, target_modules=layers), module=Encoder())


def outputs(state: dict[str, torch.Tensor]) -> Any:
    with torch.no_grad():
        return merged_module(Encoder(), state)(IDS).numpy()


def test_merged_weights_compute_what_the_module_that_peft_merged_does(trained: Any, merge: Any) -> None:
    expected = outputs(trained.merged)
    assert np.abs(outputs(load_file(trained.base)) - expected).max() > 0.01
    np.testing.assert_allclose(outputs(merge(trained.base, trained.folder)), expected, atol=NEAR)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("told", [True, False], ids=["base weights", "names"])
def test_merged_graphs_compute_what_the_module_that_peft_merged_does(
    trained: Any, merge_graph: Any, refused: Any, tmp_path: Path, dynamo: bool, told: bool
) -> None:
    graph = export(Encoder(), IDS, tmp_path / "base.onnx", dynamo=dynamo)
    # Without pooling: the graph does not have the layer behind the output.
    options = ("--exclude", "pooler.dense")
    if not told:
        words = refused(graph, trained.folder)
        assert "pooler.dense, which the base does not have" in words
        assert "--exclude" in words
    merged = merge_graph(graph, trained.folder, *options, *(("--base-weights", trained.base) if told else ()))
    np.testing.assert_allclose(run(merged, IDS), outputs(trained.merged), atol=NEAR)
