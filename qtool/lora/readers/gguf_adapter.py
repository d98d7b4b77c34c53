"""Reads adapters in llama.cpp's GGUF files.

Source: ``convert_lora_to_gguf.py`` in https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.formats.weights.gguf_file import GgufContents, read_gguf
from qtool.lora.readers.adapter import Adapter, AdapterModule, check_tensors
from qtool.lora.readers.library_names import Translation
from qtool.lora.readers.settings import AdapterSettings

if TYPE_CHECKING:
    import torch

_LAYERS = "model.layers.{}"
_DECODER: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "blk.{}.attn_q": f"{_LAYERS}.self_attn.q_proj",
    "blk.{}.attn_k": f"{_LAYERS}.self_attn.k_proj",
    "blk.{}.attn_v": f"{_LAYERS}.self_attn.v_proj",
    "blk.{}.attn_output": f"{_LAYERS}.self_attn.o_proj",
    "blk.{}.ffn_gate": f"{_LAYERS}.mlp.gate_proj",
    "blk.{}.ffn_up": f"{_LAYERS}.mlp.up_proj",
    "blk.{}.ffn_down": f"{_LAYERS}.mlp.down_proj",
}
_ENCODER: Mapping[str, str] = {
    "token_embd": "embeddings.word_embeddings",
    "blk.{}.attn_q": "encoder.layer.{}.attention.self.query",
    "blk.{}.attn_k": "encoder.layer.{}.attention.self.key",
    "blk.{}.attn_v": "encoder.layer.{}.attention.self.value",
    "blk.{}.attn_output": "encoder.layer.{}.attention.output.dense",
    "blk.{}.ffn_up": "encoder.layer.{}.intermediate.dense",
    "blk.{}.ffn_down": "encoder.layer.{}.output.dense",
}
_PLAIN = Translation(library="llama.cpp", names=_DECODER)
# By general.architecture. The first one has the rows of queries and keys in another order than transformers.
_ARCHITECTURES: Mapping[str, Translation] = {
    "llama": Translation(library="llama.cpp", names=_DECODER, queries="blk.{}.attn_q", keys="blk.{}.attn_k"),
    **dict.fromkeys(("qwen2", "qwen3", "gemma", "gemma2", "gemma3"), _PLAIN),
    "bert": Translation(library="llama.cpp", names=_ENCODER),
}
_ROLES: Mapping[str, str] = {".weight.lora_a": "lora_A", ".weight.lora_b": "lora_B"}


def read_gguf_adapter(path: Path) -> Adapter:
    """Reads the adapter.

    Raises:
        FormatError: the file is damaged, or holds tensors in types that are not read.
        InputError: it is a model or of a kind without an exact merged form, or its names are not known.
    """
    contents = read_gguf(path)
    fields = contents.fields
    if fields.get("general.type") != "adapter" or fields.get("adapter.type") != "lora":
        raise InputError(
            f"{path} is a GGUF file, but not a LoRA adapter", fix="name the adapter, or a model in another format"
        )
    if fields.get("adapter.alora.invocation_tokens"):
        raise InputError(
            f"{path} cannot be merged exactly: it applies to some tokens only (aLoRA)",
            fix="run it with llama.cpp",
        )
    architecture = str(fields.get("general.architecture"))
    if architecture not in _ARCHITECTURES:
        raise InputError(
            f"{path} is for models of the kind {architecture}, whose names in llama.cpp are not supported",
            fix="save the adapter in PEFT's format",
        )
    check_tensors(contents.tensors, path)
    alpha = fields.get("adapter.lora.alpha")
    return Adapter(
        source=path,
        settings=AdapterSettings(
            kind="LoRA",
            base_model=_base_model(fields),
            # llama.cpp treats an alpha of zero as none.
            alpha=float(alpha) if isinstance(alpha, int | float) and alpha else None,
        ),
        modules=_modules(contents, path),
        translation=_ARCHITECTURES[architecture],
    )


def _base_model(fields: Mapping[str, object]) -> str | None:
    name = fields.get("general.base_model.0.name")
    return name if isinstance(name, str) else None


def _modules(contents: GgufContents, path: Path) -> tuple[AdapterModule, ...]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in contents.tensors.items():
        ending = next((ending for ending in _ROLES if name.endswith(ending)), None)
        if ending is None:
            raise InputError(
                f"{path} holds '{name}', which is not a matrix of a LoRA adapter",
                fix="merge it with the library that made it",
            )
        found.setdefault(name.removesuffix(ending), {})[_ROLES[ending]] = tensor
    return tuple(AdapterModule(path=name, parts=_as_peft(name, parts)) for name, parts in found.items())


def _as_peft(name: str, parts: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Returns the parts by PEFT's names; llama.cpp stores the first matrix of embeddings transposed."""
    if name != "token_embd":
        return parts
    renamed = {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}
    return {renamed[role]: tensor.T if role == "lora_A" else tensor for role, tensor in parts.items()}
