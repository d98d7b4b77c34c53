"""Adapters of models whose head is their embedding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.lora.conftest import invoke, randomize

IDS = torch.tensor([[1, 5, 7, 3]])
TARGETS: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "both": {"target_modules": ["lm_head", "embed_tokens", "q_proj"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "neither": {"target_modules": ["q_proj"]},
    "kept tie": {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    "kept tie, saved": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
}
TIED = ("neither", "kept tie", "kept tie, saved")


def tied_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True)).eval()


def live(folder: Path, **config: Any) -> torch.Tensor:
    """Saves an adapter, and returns what the adapted model computes as PEFT loads it again."""
    model = peft.get_peft_model(tied_model(), peft.LoraConfig(r=2, lora_alpha=4, **config))
    randomize((value for value in model.parameters() if value.requires_grad), 2)
    model.eval().save_pretrained(folder)
    with torch.no_grad():
        logits: torch.Tensor = model(IDS).logits
    return logits


def save_folder(model: LlamaForCausalLM, folder: Path, *, sharded: bool) -> None:
    """Saves a model in one file, or in several."""
    model.save_pretrained(folder, max_shard_size="2KB" if sharded else "1GB")
    assert (folder / "model.safetensors.index.json").exists() == sharded


@pytest.mark.parametrize("form", ["folder", "shards", "pth"])
@pytest.mark.parametrize("name", TARGETS)
def test_the_merged_model_computes_what_the_adapted_one_does(tmp_path: Path, name: str, form: str) -> None:
    expected = live(tmp_path / "adapter", **TARGETS[name])
    base = tied_model()
    save_folder(base, tmp_path / "base", sharded=form == "shards")
    torch.save(base.state_dict(), tmp_path / "base.pth")
    source = tmp_path / ("base.pth" if form == "pth" else "base")
    output = tmp_path / ("merged.pth" if form == "pth" else "merged")
    result = invoke("merge-lora", source, tmp_path / "adapter", "-o", output, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["untied"] == ([] if name in TIED else ["lm_head.weight"])
    if form != "pth":
        merged = LlamaForCausalLM.from_pretrained(output).eval()
        assert merged.config.tie_word_embeddings is (name in TIED)
    else:
        config = base.config
        config.tie_word_embeddings = False
        merged = LlamaForCausalLM(config).eval()
        merged.load_state_dict(torch.load(output, weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
def test_added_tokens_make_the_base_grow(tmp_path: Path, tied: bool, sharded: bool) -> None:
    base = tied_model()
    base.config.tie_word_embeddings = tied
    base = LlamaForCausalLM(base.config).eval()
    save_folder(base, tmp_path / "base", sharded=sharded)
    base.resize_token_embeddings(27)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    model = peft.get_peft_model(base, config)
    randomize((value for value in model.parameters() if value.requires_grad), 2)
    model.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model(torch.tensor([[1, 26, 24, 3]])).logits
    result = invoke("merge-lora", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.vocab_size == 27
    if sharded:
        index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(p.nbytes for p in dict(merged.named_parameters()).values())
    with torch.no_grad():
        torch.testing.assert_close(merged(torch.tensor([[1, 26, 24, 3]])).logits, expected, atol=2e-5, rtol=1e-4)
