"""Merges a LoRA adapter into a small language model, makes it run with a cache, and quantizes its weights to 4 bits.

Run: python samples/04_language_model.py [FOLDER]

Trains both first: a Llama that counts upwards in words, and an adapter that makes it count downwards. Writes into
FOLDER (default: demo-output/language-model), and shows every command before what it prints. Needs PEFT and the extra
``llm``.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
from pathlib import Path

import peft
import tokenizers
import torch
import transformers

first_sample = importlib.import_module("01_main_job")
qtool, shown = first_sample.qtool, first_sample.shown

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ROWS, STEPS = 12, 100


def counted(start: int, step: int, length: int = 32) -> str:
    """Returns numbers in words, from ``start`` on, round and round."""
    return " ".join(NUMBERS[(start + step * place) % len(NUMBERS)] for place in range(length))


def made_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerFast:
    """Makes a tokenizer whose tokens are these words, and saves it."""
    parts = tokenizers.Tokenizer(tokenizers.models.BPE())
    parts.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    parts.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    parts.train_from_iterator([counted(0, 1)] * 4, trainer)
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=parts, eos_token="<end>", pad_token="<end>")
    made.save_pretrained(folder)
    return made


def train(model: torch.nn.Module, rows: torch.Tensor, learning_rate: float) -> None:
    """Trains what may be trained on rows of tokens."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], learning_rate)
    for _ in range(STEPS):
        batch = rows[torch.randint(len(rows), (ROWS,))]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained to a loss of {loss.item():.3f}")


def trained(base: Path, adapter: Path) -> None:
    """Saves a model that counts upwards in ``base``, and an adapter that turns it around in ``adapter``."""
    torch.manual_seed(0)
    words = made_tokenizer(base)
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=0,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config)
    upwards, downwards = (
        torch.tensor([words.encode(counted(start, step)) for start in range(len(NUMBERS))]) for step in (1, -1)
    )
    train(model, upwards, 3e-3)
    model.save_pretrained(base)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    train(tuned, downwards, 1e-2)
    tuned.save_pretrained(adapter)


def main() -> None:
    """Trains, merges, converts, quantizes and reports."""
    parser = argparse.ArgumentParser(description="Merges an adapter into a language model and quantizes it.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo-output/language-model"))
    folder = parser.parse_args().folder
    base, adapter, merged = (folder / name for name in ("counting-up", "counting-down-lora", "counting-down"))
    trained(base, adapter)

    # Configuration and tokenizer are those of the base.
    shutil.copytree(base, merged, dirs_exist_ok=True)
    weights = shown(merged / "model.safetensors")
    qtool("merge-lora", shown(base / "model.safetensors"), shown(adapter), "-o", weights, "--force")
    floating, small = shown(folder / "counting-down-onnx"), shown(folder / "counting-down-4-bits")
    qtool("convert", shown(merged), "--to", "onnx", "-o", floating, "--force")
    text = folder / "downwards.txt"
    text.write_text("\n".join(counted(start, -1) for start in range(len(NUMBERS))) + "\n", encoding="utf-8")
    qtool(
        *("quantize", floating, "--scheme", "weights", "--bits", "4", "--calib-data", shown(text), "--tokens", "16"),
        *("-o", small, "--force"),
    )
    gates = ("--fail-if", "perplexity_rise > 20%", "--fail-if", "size_ratio > 0.6")
    qtool(*("report", floating, small, "--data", shown(text), "--tokens", "16", "--prompt", "nine eight seven", *gates))


if __name__ == "__main__":
    main()
