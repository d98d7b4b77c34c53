"""Trains a small language model on text that Python brings along, and writes it as a Hugging Face folder.

Run: python benchmarks/train_decoder.py OUT_FOLDER [--steps N] [--seed N]

A decoder of Llama's kind with a tokenizer of its own (byte-pair encoding), on the reference texts in ``pydoc_data``.
Its weights were never on a grid, unlike those of models that are handed round quantized. Beside the model it writes
``calib.txt``, what it was trained on in part, and ``eval.txt``, which it has not seen.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROW = 128
HELD_OUT = 0.1
VOCABULARY = 4096
END = "<|end|>"


def main() -> None:
    """Trains, tells the loss on held-out text, and writes the folder."""
    parser = argparse.ArgumentParser(description="Trains a small language model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    seen, unseen = _texts()
    tokenizer = _tokenizer(seen)
    model = _trained(_rows(tokenizer, seen), arguments.steps, np.random.default_rng(arguments.seed))
    with torch.no_grad():
        held_out = _rows(tokenizer, unseen)
        loss = float(np.mean([float(_loss(model, held_out[at : at + 16])) for at in range(0, len(held_out), 16)]))
    print(f"perplexity on held-out text: {np.exp(loss):.2f}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(arguments.folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END).save_pretrained(arguments.folder)
    (arguments.folder / "calib.txt").write_text(seen, encoding="utf-8")
    (arguments.folder / "eval.txt").write_text(unseen, encoding="utf-8")


def _texts() -> tuple[str, str]:
    """Returns what is trained on, and what is not: every tenth paragraph."""
    paragraphs = [text for name in sorted(topics) for text in re.split(r"\n\s*\n", topics[name]) if text.strip()]
    every = round(1 / HELD_OUT)
    seen = [text for at, text in enumerate(paragraphs) if at % every]
    return "\n\n".join(seen), "\n\n".join(paragraphs[::every])


def _tokenizer(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def _rows(tokenizer: Tokenizer, text: str) -> torch.Tensor:
    ids = tokenizer.encode(text).ids
    count = len(ids) // ROW
    return torch.tensor(ids[: count * ROW]).reshape(count, ROW)


def _trained(rows: torch.Tensor, steps: int, draw: np.random.Generator) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        loss = _loss(model, rows[draw.integers(len(rows), size=16)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def _loss(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    return model(input_ids=rows, labels=rows).loss


if __name__ == "__main__":
    main()
