"""Writes a GGUF model as transformers knows it: ``python -m qtool.llm.gguf_export FILE.gguf FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path


def main(file: str, folder: str) -> None:
    """Writes configuration, dequantized weights in float32 and tokenizer into ``folder``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(file)
    where, given = str(path.parent), {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(where, **given)
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **given)
    # It takes itself for quantized, and would not be saved.
    vars(model).update(is_quantized=False, hf_quantizer=None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
