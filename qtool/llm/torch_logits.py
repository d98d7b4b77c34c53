"""Writes what transformers' model answers: ``python -m qtool.llm.torch_logits FOLDER TOKENS.npy LOGITS.npy LAST``."""

from __future__ import annotations

import sys

import numpy as np


def main(folder: str, tokens: str, logits: str, last: str) -> None:
    """Writes the logits of the last tokens, float32 (1, last, vocabulary)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        attn_implementation="eager",
    ).eval()
    with torch.no_grad():
        found = model(torch.from_numpy(np.load(tokens, allow_pickle=False)), use_cache=False).logits
    np.save(logits, found[:, -int(last) :].to(torch.float32).numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
