"""Adapters that torchtune and llama.cpp store, against the same ones that PEFT merges."""

from __future__ import annotations

import json
import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

HEADS, KEY_HEADS, SIDE = 4, 2, 32
TORCHTUNE = {
    "model.embed_tokens": "tok_embeddings",
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.o_proj": "attn.output_proj",
    "mlp.gate_proj": "mlp.w1",
    "mlp.down_proj": "mlp.w2",
    "mlp.up_proj": "mlp.w3",
    "model.layers": "layers",
    "lm_head": "output",
}
GGUF = {
    "model.embed_tokens": "token_embd",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
    "mlp.up_proj": "ffn_up",
    "model.layers": "blk",
    "lm_head": "output",
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": SIDE, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 60}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS))


@pytest.fixture
def trained(train: Any, tmp_path: Path) -> Callable[..., Any]:
    def build(layers: list[str]) -> Any:
        config = {"model_type": "llama", "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return train(peft.LoraConfig(r=2, lora_alpha=5, target_modules=layers), module=llama())

    return build


def renamed(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def neighbours(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Puts rows that are half a head apart beside each other, which is how both libraries store queries and keys."""
    order = [
        head * rows.shape[0] // heads + half * (rows.shape[0] // heads // 2) + number
        for head in range(heads)
        for number in range(rows.shape[0] // heads // 2)
        for half in (0, 1)
    ]
    return rows[order].contiguous()


def in_their_order(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        name = key.removeprefix("base_model.model.")
        if "lora_" not in name:
            continue  # PEFT saves the whole of embeddings, too
        if name.endswith("q_proj.lora_B.weight"):
            tensor = neighbours(tensor, HEADS)
        if name.endswith("k_proj.lora_B.weight"):
            tensor = neighbours(tensor, KEY_HEADS)
        found[name] = tensor
    return found


def write_gguf(path: Path, tensors: dict[str, tuple[int, tuple[int, ...], bytes]], **fields: Any) -> Path:
    """Writes a file by hand, as the format's document says."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    for key, value in fields.items():
        stored = struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<I", 8) + text(value)
        head += text(key.replace("__", ".")) + stored
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(data))
        data += raw + bytes(-len(raw) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def gguf_adapter(folder: Path, path: Path, *, architecture: str = "llama", **changed: bytes) -> Path:
    tensors = {}
    for name, tensor in in_their_order(folder).items():
        ending = ".weight.lora_a" if "_A" in name else ".weight.lora_b"
        module = renamed(name.replace("_embedding", "").rpartition(".lora_")[0], GGUF)
        if module == "token_embd" and ending.endswith("a"):
            tensor = tensor.T.contiguous()
        tensors[module + ending] = (0, tuple(tensor.shape), tensor.numpy().tobytes())
    fields = {"general__type": "adapter", "adapter__type": "lora", "general__architecture": architecture}
    return write_gguf(path, tensors | changed, **fields, adapter__lora__alpha=5.0)


def torchtune_adapter(folder: Path, path: Path) -> Path:
    names = {".lora_A.": ".lora_a.", ".lora_B.": ".lora_b."} | TORCHTUNE
    torch.save({renamed(name, names): tensor for name, tensor in in_their_order(folder).items()}, path)
    return path


def test_embeddings_that_peft_saves_along_with_their_adapter_change_once(
    trained: Any, merge: Any, distance: Any
) -> None:
    adapter = trained(["lm_head", "embed_tokens"])
    assert any("base_layer" in name for name in load_file(adapter.folder / "adapter_model.safetensors"))
    assert distance(merge(adapter.base, adapter.folder), adapter.merged) < 1e-6


def test_torchtune_names_and_rows_are_translated(trained: Any, merge: Any, distance: Any) -> None:
    adapter = trained(LINEAR)
    file = torchtune_adapter(adapter.folder, adapter.folder / "adapter_0.pt")
    assert distance(merge(adapter.base, file), adapter.merged) < 1e-6


def test_torchtune_adapters_fit_weights_of_torchtune_as_they_are(trained: Any, command: Any, tmp_path: Path) -> None:
    adapter = trained(["q_proj", "down_proj"])
    file = torchtune_adapter(adapter.folder, adapter.folder / "adapter_0.pt")
    tensors = torch.load(file, weights_only=True)
    state = {"layers.0.attn.q_proj": (32, 32), "layers.1.attn.q_proj": (32, 32), "layers.0.mlp.w2": (32, 48)}
    state |= {"layers.1.mlp.w2": (32, 48)}
    torch.save({f"{name}.weight": torch.zeros(shape) for name, shape in state.items()}, tmp_path / "own.pt")
    result = command(tmp_path / "own.pt", file, "-o", tmp_path / "out.pt")
    assert result.exit_code == 0, result.output
    merged = torch.load(tmp_path / "out.pt", weights_only=True)
    for name in state:
        expected = 2.5 * tensors[f"{name}.lora_b.weight"] @ tensors[f"{name}.lora_a.weight"]
        torch.testing.assert_close(merged[f"{name}.weight"], expected)


def test_torchtune_files_need_their_settings_and_the_heads_of_the_base(
    trained: Any, refused: Any, tmp_path: Path
) -> None:
    adapter = trained(["q_proj"])
    file = torchtune_adapter(adapter.folder, tmp_path / "adapter_0.pt")
    assert "does not give its alpha" in refused(adapter.base, file)
    file = torchtune_adapter(adapter.folder, adapter.folder / "adapter_0.pt")
    (tmp_path / "config.json").write_text('{"model_type": "gemma", "num_attention_heads": 4}')
    assert "not known for models of the kind gemma" in refused(adapter.base, file)
    (tmp_path / "config.json").unlink()
    assert "how many heads" in refused(adapter.base, file)


def test_files_of_torch_that_would_run_code_are_not_opened(trained: Any, refused: Any, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "opened",))

    adapter = trained(["q_proj"])
    torch.save({"layers.0.attn.q_proj.lora_a.weight": Hostile()}, adapter.folder / "adapter_0.pt")
    assert "is a Python pickle" in refused(adapter.base, adapter.folder / "adapter_0.pt")
    (adapter.folder / "adapter_1.pt").write_bytes(pickle.dumps(Hostile()))
    refused(adapter.base, adapter.folder / "adapter_1.pt")
    assert not (tmp_path / "opened").exists()


def test_gguf_names_and_rows_are_translated(trained: Any, merge: Any, distance: Any, tmp_path: Path) -> None:
    adapter = trained([*LINEAR, "embed_tokens"])
    file = gguf_adapter(adapter.folder, tmp_path / "adapter.gguf")
    assert distance(merge(adapter.base, file), adapter.merged) < 1e-6


@pytest.mark.parametrize(("kind", "tolerance"), [(1, 5e-4), (30, 4e-3), (8, 4e-3)], ids=["F16", "BF16", "Q8_0"])
def test_gguf_matrices_may_be_stored_in_fewer_bits(
    trained: Any, merge: Any, tmp_path: Path, kind: int, tolerance: float
) -> None:
    adapter = trained(["down_proj"])
    matrix = torch.randn(64, SIDE, generator=torch.Generator().manual_seed(1))
    state = {"model.layers.0.mlp.down_proj.weight": torch.zeros(SIDE, SIDE)}
    torch.save(state, tmp_path / "zeros.pth")
    tensors = {
        "blk.0.ffn_down.weight.lora_a": (kind, (64, SIDE), raw(matrix, kind)),
        "blk.0.ffn_down.weight.lora_b": (kind, (SIDE, 64), raw(torch.eye(SIDE, 64), kind)),
    }
    fields = {"general__type": "adapter", "adapter__type": "lora", "general__architecture": "llama"}
    file = write_gguf(tmp_path / "few.gguf", tensors, **fields)
    merged = merge(tmp_path / "zeros.pth", file, output="out.pth")["model.layers.0.mlp.down_proj.weight"]
    assert adapter.base.exists()
    error = (merged - matrix[:SIDE]).abs().max() / matrix.abs().max()
    assert 1e-6 < error < tolerance


def raw(matrix: torch.Tensor, kind: int) -> bytes:
    if kind == 1:
        return matrix.half().numpy().tobytes()
    if kind == 30:
        return matrix.bfloat16().view(torch.int16).numpy().tobytes()
    stored = b""
    for block in matrix.reshape(-1, 32).numpy():
        scale = np.float16(max(np.abs(block).max() / 127, 1e-7))
        stored += scale.tobytes() + np.rint(block / np.float32(scale)).astype(np.int8).tobytes()
    return stored


def test_gguf_files_that_are_damaged_or_other_things_are_refused(trained: Any, refused: Any, tmp_path: Path) -> None:
    adapter = trained(["q_proj"])
    whole = gguf_adapter(adapter.folder, tmp_path / "adapter.gguf").read_bytes()
    for count in (3, 10, 40, 200, len(whole) // 2, len(whole) - 400):
        (tmp_path / "cut.gguf").write_bytes(whole[:count])
        refused(adapter.base, tmp_path / "cut.gguf")
    (tmp_path / "old.gguf").write_bytes(whole[:4] + struct.pack("<I", 1) + whole[8:])
    assert "of version 1" in refused(adapter.base, tmp_path / "old.gguf")
    (tmp_path / "many.gguf").write_bytes(whole[:8] + struct.pack("<Q", 1 << 60) + whole[16:])
    assert f"announces {1 << 60} tensors" in refused(adapter.base, tmp_path / "many.gguf")
    unknown = {"blk.0.attn_v.weight.lora_a": (99, (32, 32), bytes(18 * 32))}
    assert "has the GGUF type 99" in refused(
        adapter.base, gguf_adapter(adapter.folder, tmp_path / "unknown.gguf", **unknown)
    )
    assert "not a LoRA adapter" in refused(adapter.base, write_gguf(tmp_path / "model.gguf", {}, general__type="model"))
    other = gguf_adapter(adapter.folder, tmp_path / "mamba.gguf", architecture="mamba")
    assert "models of the kind mamba" in refused(adapter.base, other)
    norm = {"blk.0.attn_norm.weight": (0, (32,), bytes(128))}
    assert "not a matrix of a LoRA" in refused(adapter.base, gguf_adapter(adapter.folder, tmp_path / "n.gguf", **norm))


def test_gguf_bytes_that_flip_give_clean_errors_or_results(trained: Any, command: Any, tmp_path: Path) -> None:
    adapter = trained(["q_proj"])
    whole = bytearray(gguf_adapter(adapter.folder, tmp_path / "adapter.gguf").read_bytes())
    random = np.random.default_rng(0)
    for place in random.integers(0, math.ceil(len(whole) * 0.4), 60):
        damaged = bytearray(whole)
        damaged[int(place)] ^= 1 << int(random.integers(8))
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        result = command(adapter.base, tmp_path / "damaged.gguf", "--dry-run", "--quiet")
        assert result.exit_code in (0, 2), result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
