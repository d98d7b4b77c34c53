from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode


def _works(report: Any) -> dict[str, int]:
    return {node["node"]: node["multiply_adds"] for node in report["macs"]["nodes"]}


def test_every_node_that_multiplies_is_listed(facts: Any, network: Path) -> None:
    report = facts("net.onnx", "--macs")
    assert _works(report) == {"n_c1": 64 * 8 * 27, "n_c2": 64 * 8 * 72, "n_c3": 64 * 8 * 3, "n_scores": 40}
    assert report["macs"]["total"] == report["graph"]["multiply_adds"]["total"] == 64 * 8 * 102 + 40
    assert (report["macs"]["other_nodes"], report["macs"]["unknown_nodes"]) == (4, 0)
    assert report["macs"]["by_operator"] == {"Conv": 64 * 8 * 102, "Gemm": 40}


@pytest.mark.parametrize(
    ("node", "module", "shape", "weights"),
    [
        (
            "ConvTranspose <strides = [2,2], group = 2, output_padding = [1,1]> (x, w)",
            torch.nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2, output_padding=1, bias=False),
            (2, 6, 5, 7),
            (6, 2, 3, 3),
        ),
        (
            "Conv <dilations = [1,2,2]> (x, w)",
            torch.nn.Conv3d(2, 4, (1, 3, 3), dilation=(1, 2, 2), bias=False),
            (1, 2, 4, 9, 9),
            (4, 2, 1, 3, 3),
        ),
        (
            "Conv <pads = [2,2], group = 2> (x, w)",
            torch.nn.Conv1d(4, 6, 5, padding=2, groups=2, bias=False),
            (3, 4, 20),
            (6, 2, 5),
        ),
        ("MatMul (x, w)", lambda x: x @ torch.zeros(7, 4, 5), (7, 3, 4), (7, 4, 5)),
        ("Gemm <transA = 1, transB = 1> (x, w)", lambda x: x.T @ torch.zeros(6, 5).T, (5, 3), (6, 5)),
    ],
    ids=["transposed", "three axes", "one axis", "batch of products", "both sides turned"],
)
def test_the_count_is_that_of_the_loops_that_torch_runs(
    facts: Any, save: Any, node: str, module: Any, shape: tuple[int, ...], weights: tuple[int, ...]
) -> None:
    with FlopCounterMode(display=False) as counter:
        out = module(torch.zeros(shape))
    dims = [",".join(map(str, lengths)) for lengths in (shape, out.shape)]
    text = f"one (float[{dims[0]}] x) => (float[{dims[1]}] y) {{ y = {node} }}"
    save("one.onnx", text, w=np.zeros(weights, np.float32))
    assert facts("one.onnx", "--macs")["macs"]["total"] == counter.get_total_flops() // 2 > 0


def test_attention_counts_as_its_two_products(facts: Any, save: Any) -> None:
    save(
        "attention.onnx",
        """attention (float[2,4,6,8] q, float[2,4,10,8] k, float[2,4,10,16] v) => (float[2,4,6,16] y) {
            y = Attention (q, k, v)
        }""",
        opset=23,
    )
    query, key, value = torch.zeros(2, 4, 6, 8), torch.zeros(2, 4, 10, 8), torch.zeros(2, 4, 10, 16)
    with FlopCounterMode(display=False) as counter:
        query @ key.mT @ value
    assert facts("attention.onnx", "--macs")["macs"]["total"] == counter.get_total_flops() // 2


def test_attention_of_onnxruntime_counts_as_its_products(facts: Any, tmp_path: Path) -> None:
    batch, queries, keys, hidden, heads = 2, 5, 7, 12, 3
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        make("MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=heads, name="outside"),
        make("Attention", ["q", "w", "b"], ["z"], domain="com.microsoft", num_heads=heads, name="whole"),
    ]
    shapes = {"q": [batch, queries, hidden], "k": [batch, keys, hidden], "v": [batch, keys, hidden]}
    stored = {"w": np.ones((hidden, 3 * hidden), np.float32), "b": np.zeros(3 * hidden, np.float32)}
    graph = onnx.helper.make_graph(
        nodes,
        "attention",
        [value(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [value(name, onnx.TensorProto.FLOAT, shapes["q"]) for name in ("y", "z")],
        [onnx.numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "attention.onnx")
    query, key = torch.zeros(batch, queries, hidden), torch.zeros(batch, keys, hidden)
    with FlopCounterMode(display=False) as outside:
        q, k = (x.reshape(batch, -1, heads, hidden // heads).transpose(1, 2) for x in (query, key))
        q @ k.mT @ k
    with FlopCounterMode(display=False) as whole:
        q, k, v = (query @ torch.zeros(hidden, 3 * hidden)).chunk(3, -1)
        q @ k.mT @ v
    expected = {"outside": outside.get_total_flops() // 2, "whole": whole.get_total_flops() // 2}
    assert _works(facts("attention.onnx", "--macs")) == expected


def test_a_recurrent_layer_meets_its_weights_at_every_step(facts: Any, save: Any) -> None:
    steps, batch, size, hidden = 5, 3, 4, 6
    save(
        "lstm.onnx",
        f"""lstm (float[{steps},{batch},{size}] x) => (float[{steps},2,{batch},{hidden}] y) {{
            y = LSTM <hidden_size = {hidden}, direction = "bidirectional"> (x, w, r)
        }}""",
        w=np.zeros((2, 4 * hidden, size), np.float32),
        r=np.zeros((2, 4 * hidden, hidden), np.float32),
    )
    one_direction = steps * batch * 4 * hidden * (size + hidden)
    assert facts("lstm.onnx", "--macs")["macs"]["total"] == 2 * one_direction


@pytest.mark.parametrize(
    ("equation", "left", "right", "expected"),
    [
        ("bij,bjk->bik", (3, 4, 5), (3, 5, 6), 3 * 4 * 5 * 6),
        ("...ij,...jk->...ik", (2, 3, 4, 5), (3, 5, 6), 2 * 3 * 4 * 5 * 6),
        ("i,j->ij", (4,), (5,), 20),
    ],
)
def test_an_einsum_multiplies_once_for_every_combination(
    facts: Any, save: Any, equation: str, left: tuple[int, ...], right: tuple[int, ...], expected: int
) -> None:
    dims = [",".join(map(str, shape)) for shape in (left, right)]
    save(
        "einsum.onnx",
        f'einsum (float[{dims[0]}] a, float[{dims[1]}] b) => (float y) {{ c = Einsum <equation = "{equation}"> (a, b)'
        " y = ReduceSum <keepdims = 0> (c) }",
    )
    assert facts("einsum.onnx", "--macs")["macs"]["total"] == expected


def test_unknown_lengths_are_said(run: Any, save: Any) -> None:
    save(
        "free.onnx",
        "free (float[batch,n] x) => (float[batch,3] y) { y = MatMul (x, w) }",
        w=np.ones((4, 3), np.float32),
    )
    assert "1 × 3" in run("inspect", "free.onnx", "--macs", "--input-shape", "x=1,4").out
    assert "batch=1" in run("inspect", "free.onnx", "--macs").out
