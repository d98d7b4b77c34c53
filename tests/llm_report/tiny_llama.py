"""A tiny decoder of the Llama kind with random weights, as graphs with and without a cache, and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, INNER, CONTEXT = 32, 2, 2, 1, 16, 48, 256
EPSILON, THETA = 1e-5, 10000.0
WORDS = [
    "<unk>",
    "<s>",
    "</s>",
    *[
        "the",
        "a",
        "of",
        "in",
        "to",
        "and",
        "model",
        "weight",
        "layer",
        "value",
        "input",
        "output",
        "array",
        "axis",
        "shape",
        "run",
    ],
]
VOCABULARY = len(WORDS)
Weights = Mapping[str, np.ndarray]


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Returns weights by transformers' names, as torch lays them out: (out, in)."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, size: float = 1.0) -> np.ndarray:
        return (size * random.normal(size=(rows, columns)) / np.sqrt(columns)).astype(np.float32)

    weights = {"model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN, 5.0)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        weights |= {
            f"{name}.self_attn.q_proj.weight": matrix(HEADS * HEAD, HIDDEN),
            f"{name}.self_attn.k_proj.weight": matrix(KV_HEADS * HEAD, HIDDEN),
            f"{name}.self_attn.v_proj.weight": matrix(KV_HEADS * HEAD, HIDDEN),
            f"{name}.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD),
            f"{name}.mlp.gate_proj.weight": matrix(INNER, HIDDEN),
            f"{name}.mlp.up_proj.weight": matrix(INNER, HIDDEN),
            f"{name}.mlp.down_proj.weight": matrix(HIDDEN, INNER),
            f"{name}.input_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{name}.post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
        }
    weights["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    weights["lm_head.weight"] = matrix(VOCABULARY, HIDDEN, 3.0)
    return weights


def rounded(weights: Weights, bits: int) -> dict[str, np.ndarray]:
    """Returns the weights with the matrices inside of layers on a grid of so many bits."""
    found = dict(weights)
    for name, value in weights.items():
        if value.ndim == 2 and "layers" in name:
            step = np.abs(value).max() / (2 ** (bits - 1) - 1)
            found[name] = (np.rint(value / step) * step).astype(np.float32)
    return found


def decoder(weights: Weights, *, cache: bool = True, length: int | str = "sequence_length") -> onnx.ModelProto:
    """Returns the graph, with caches whose head size is left open, as onnxruntime-genai's builder writes them."""
    nodes: list[onnx.NodeProto] = []
    stored = {"axis": np.array([1], np.int64), "one": np.int64(1)}
    frequencies = THETA ** (-np.arange(0, HEAD, 2) / HEAD)
    angles = np.arange(CONTEXT)[:, None] * frequencies[None]
    stored |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}

    def add(op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def norm(x: str, name: str) -> str:
        stored[name] = weights[f"{name}.weight"]
        return add("SimplifiedLayerNormalization", [x, name], [f"{name}.out"], epsilon=EPSILON, axis=-1)

    def linear(x: str, name: str) -> str:
        stored[name] = np.ascontiguousarray(weights[f"{name}.weight"].T)
        return add("MatMul", [x, name], [f"{name}.out"])

    if cache:
        add("ReduceSum", ["attention_mask", "axis"], ["counted"], keepdims=0)
        add("Shape", ["attention_mask"], ["extent"])
    else:
        add("Shape", ["input_ids"], ["extent"])
        add("Gather", ["extent", "one"], ["each"])
        add("Shape", ["input_ids"], ["rows"], end=1)
        add("Expand", ["each", "rows"], ["counted"])
    add("Sub", ["counted", "one"], ["last"])
    add("Cast", ["last"], ["seqlens"], to=TensorProto.INT32)
    add("Gather", ["extent", "one"], ["total64"])
    add("Cast", ["total64"], ["total"], to=TensorProto.INT32)
    stored["embedding"] = weights["model.embed_tokens.weight"]
    x = add("Gather", ["embedding", "input_ids"], ["embedded"])
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        inner = norm(x, f"{name}.input_layernorm")
        q, k, v = (linear(inner, f"{name}.self_attn.{part}_proj") for part in "qkv")
        past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"] if cache else ["", ""]
        present = [f"present.{layer}.key", f"present.{layer}.value"]
        attended = add(
            "GroupQueryAttention",
            [q, k, v, *past, "seqlens", "total", "cos", "sin"],
            [f"{name}.attended", *present],
            "com.microsoft",
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            do_rotary=1,
        )
        x = add("Add", [x, linear(attended, f"{name}.self_attn.o_proj")], [f"{name}.middle"])
        inner = norm(x, f"{name}.post_attention_layernorm")
        gate = linear(inner, f"{name}.mlp.gate_proj")
        silu = add("Mul", [gate, add("Sigmoid", [gate], [f"{name}.sigmoid"])], [f"{name}.silu"])
        product = add("Mul", [silu, linear(inner, f"{name}.mlp.up_proj")], [f"{name}.product"])
        x = add("Add", [x, linear(product, f"{name}.mlp.down_proj")], [f"{name}.sum"])
    stored["lm_head"] = np.ascontiguousarray(weights["lm_head.weight"].T)
    add("MatMul", [norm(x, "model.norm"), "lm_head"], ["logits"])
    info = helper.make_tensor_value_info
    inputs = [info("input_ids", TensorProto.INT64, ["batch_size", length])]
    outputs = [info("logits", TensorProto.FLOAT, ["batch_size", length, VOCABULARY])]
    if cache:
        inputs.append(info("attention_mask", TensorProto.INT64, ["batch_size", "total_length"]))
        for layer in range(LAYERS):
            for kind in ("key", "value"):
                shapes = [
                    ["batch_size", KV_HEADS, f"{time}_sequence_length", "kv_cache_dim"] for time in ("past", "total")
                ]
                inputs.append(info(f"past_key_values.{layer}.{kind}", TensorProto.FLOAT, shapes[0]))
                outputs.append(info(f"present.{layer}.{kind}", TensorProto.FLOAT, shapes[1]))
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, [each for each in initializers if each.name in used])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def write_tokenizer(path: Path, *, begins: bool = False) -> Path:
    """Writes a tokenizer of whole words; it puts ``<s>`` before a text where ``begins``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.enable_truncation(4)  # a length that somebody once trained with
    tokenizer.save(str(path))
    return path


def write_folder(folder: Path, weights: Weights, *, begins: bool = False) -> Path:
    """Writes a decoder folder: the graph with its cache, the configuration and the tokenizer."""
    folder.mkdir(parents=True)
    onnx.save(decoder(weights), folder / "model.onnx")
    write_tokenizer(folder / "tokenizer.json", begins=begins)
    names = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    config = {
        "model": {
            "type": "llama",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY,
            "decoder": {
                "filename": "model.onnx",
                "head_size": HEAD,
                "hidden_size": HIDDEN,
                "num_attention_heads": HEADS,
                "num_hidden_layers": LAYERS,
                "num_key_value_heads": KV_HEADS,
                "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **names},
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        }
    }
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def random_text(words: int, seed: int = 3) -> str:
    """Returns a text of so many known words, in lines."""
    random = np.random.default_rng(seed)
    chosen = [WORDS[number] for number in random.integers(3, VOCABULARY, size=words)]
    return "\n".join(" ".join(chosen[first : first + 12]) for first in range(0, words, 12)) + "\n"
