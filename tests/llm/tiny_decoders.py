"""Small decoders of several kinds with random weights, saved as transformers saves them, with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 320
PROMPT = (7, 200, 31, 5, 90)
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_HEADS = {**_SHAPE, "head_dim": 16}
_WINDOWS = {**_HEADS, "sliding_window": 16}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _HEADS),
    "smollm": ("LlamaConfig", {**_HEADS, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", _HEADS),
    "qwen3": ("Qwen3Config", _HEADS),
    "mistral": ("MistralConfig", {**_HEADS, "sliding_window": None}),
    "mistral with a window": ("MistralConfig", _WINDOWS),
    "gemma": ("GemmaConfig", _HEADS),
    # A head of its own: a tied one says the same token again and again.
    "gemma2": ("Gemma2Config", {**_WINDOWS, "query_pre_attn_scalar": 16, "tie_word_embeddings": False}),
    "gemma3": (
        "Gemma3TextConfig",
        {**_WINDOWS, "query_pre_attn_scalar": 16, "num_hidden_layers": 6, "tie_word_embeddings": False},
    ),
    "phi3": ("Phi3Config", {**_SHAPE, "original_max_position_embeddings": 256}),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 256,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "tie_word_embeddings": False,
        },
    ),
}


def save_decoder(folder: Path, kind: str, **options: Any) -> Path:
    """Saves a decoder whose logits differ enough for a choice between tokens to be clear."""
    name, fields = _CONFIGS[kind]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**fields)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            is_scale = parameter.ndim == 1 and "norm" in key.lower() and key.endswith("weight")
            spread = 0.3 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn_like(parameter) * spread + float(is_scale))
        # A logit of zero is never the largest, so that no answer ends early.
        model.get_output_embeddings().weight[_SHAPE["eos_token_id"]] = 0.0
    model.save_pretrained(folder, **options)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """Saves a tokenizer of bytes and a few pairs."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(["a quick fox jumps over a lazy dog"] * 4, trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=found,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    ).save_pretrained(folder)


def torch_tokens(folder: Path, count: int) -> list[int]:
    """Returns the greedy tokens that follow ``PROMPT`` in transformers, which runs over all of them at each step."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    said = list(PROMPT)
    with torch.no_grad():
        for _ in range(count):
            said.append(int(model(torch.tensor([said]), use_cache=False).logits[0, -1].argmax()))
    return said[len(PROMPT) :]
