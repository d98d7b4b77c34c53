import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch

CONV, GEMM, MATMUL = 6 * 2 * 9, 4 * 7, 7 * 5


def test_a_graph_is_described(facts: Any, network: Path) -> None:
    report = facts("network.onnx", "--largest", "2")
    assert report["nbytes"] == network.stat().st_size
    assert (report["tensors"], report["parameters"]) == (5, 108 + 96 + 28 + 35 + 2)
    assert report["dtypes"] == {
        "float32": {"tensors": 4, "parameters": 267, "nbytes": 1068},
        "int64": {"tensors": 1, "parameters": 2, "nbytes": 16},
    }
    assert [tensor["name"] for tensor in report["largest"]] == ["conv.w", "up.w"]
    graph = report["graph"]
    assert (graph["ir_version"], graph["producer"]) == (8, "tests")
    assert graph["opsets"] == {"ai.onnx": 17, "com.example": 2}
    assert graph["inputs"] == ["image float32 (batch, 4, side, 10)"]
    assert graph["outputs"] == ["scores float32 (batch, 5)"]
    assert graph["operators"]["Conv"] == 1
    assert sum(graph["operators"].values()) == 7


def test_multiply_adds_agree_with_counting_by_hand(facts: Any, network: Path) -> None:
    work = facts("network.onnx", "--input-shape", "image=2,4,20,10")["graph"]["multiply_adds"]
    conv = 2 * 20 * 10 * CONV
    up = 2 * 6 * 20 * 10 * (4 * 2 * 2)
    assert work["total"] == conv + up + 2 * GEMM + 2 * MATMUL
    assert (work["known_nodes"], work["unknown_nodes"]) == (4, 0)
    assert work["assumed"] == {"batch": 2, "side": 20}


def test_free_dimensions_leave_nodes_unknown_but_a_batch_is_one_sample(facts: Any, network: Path) -> None:
    work = facts("network.onnx")["graph"]["multiply_adds"]
    assert work["total"] == GEMM + MATMUL
    assert (work["known_nodes"], work["unknown_nodes"], work["assumed"]) == (2, 2, {"batch": 1})


def test_a_name_that_stands_for_several_lengths_is_no_contradiction(facts: Any, tmp_path: Path) -> None:
    # As some exporters write what they know nothing about.
    graph = onnx.parser.parse_graph("odd (float[unknown,2,unknown,3] x) => (float[a,2,c,5] y) { y = MatMul (x, w) }")
    graph.initializer.append(onnx.numpy_helper.from_array(np.ones((3, 5), np.float32), "w"))
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "odd.onnx")
    work = facts("odd.onnx", "--input-shape", "x=7,2,4,3")["graph"]["multiply_adds"]
    assert work["total"] == 7 * 2 * 4 * 3 * 5


def test_multiply_adds_agree_with_the_loops_that_torch_runs(facts: Any, tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1, groups=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, 1, 1, groups=8),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 8 * 8, 10),
    ).eval()
    torch.onnx.export(net, (torch.zeros(1, 3, 16, 16),), "net.onnx", dynamo=True, external_data=False, verbose=False)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 16, 16))
    assert facts("net.onnx")["graph"]["multiply_adds"]["total"] == counter.get_total_flops() // 2


def test_the_quantized_share_is_counted(facts: Any, quantized: Path) -> None:
    graph = facts("quantized.onnx")["graph"]
    share = graph["quantization"]
    assert (share["quantize_nodes"], share["dequantize_nodes"], share["integer_nodes"]) == (1, 2, 0)
    assert (share["quantized_layers"], share["layers"]) == (1, 2)
    assert (share["quantized_parameters"], share["weight_parameters"]) == (1000, 2001)
    assert (share["quantized_bytes"], share["weight_bytes"]) == (1000, 1000 + 4004)
    assert (graph["multiply_adds"]["quantized"], graph["multiply_adds"]["total"]) == (1000, 2000)


def test_the_table_says_how_much_is_quantized(run: Any, quantized: Path, network: Path) -> None:
    shown = run("quantized.onnx").stdout
    assert "1 of 2 layers, 50.0% of the weights, 50.0% of the multiply-adds" in shown
    assert "1 QuantizeLinear, 2 DequantizeLinear" in shown
    plain = run("network.onnx").stdout
    assert "2 nodes of unknown shape (give lengths with --input-shape)" in plain
    assert "image float32 (batch, 4, side, 10)" in plain
    assert "6 × 2 × 3 × 3" in plain


def test_weights_that_are_constant_nodes_count_too(facts: Any, run: Any, tmp_path: Path) -> None:
    value = onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    nodes = [
        onnx.helper.make_node("Constant", [], ["w"], value=value),
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 4])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y])), "m.onnx")
    report = facts("m.onnx")
    assert report["parameters"] == 12
    assert report["graph"]["multiply_adds"]["total"] == 2 * 4 * 3


def test_external_data_counts_but_is_not_read(facts: Any, network: Path, tmp_path: Path) -> None:
    model = onnx.load(network)
    (tmp_path / "apart").mkdir()
    onnx.save(model, "apart/m.onnx", save_as_external_data=True, location="m.data", size_threshold=100)
    report = facts("apart/m.onnx")
    assert report["data_files"] == ["m.data"]
    assert report["nbytes"] == sum(path.stat().st_size for path in (tmp_path / "apart").iterdir())
    assert report["parameters"] == facts("network.onnx")["parameters"]


@pytest.mark.parametrize("kind", ["pth", "legacy.pth", "safetensors"])
def test_weights_without_a_graph_are_described(facts: Any, run: Any, kind: str) -> None:
    state = {"w": torch.ones(4, 5, dtype=torch.bfloat16), "b": torch.ones(3), "n": torch.tensor(1)}
    if kind == "safetensors":
        safetensors.torch.save_file(state, f"m.{kind}", metadata={"format": "pt"})
    else:
        torch.save({"model": state}, f"m.{kind}", _use_new_zipfile_serialization=kind == "pth")
    report = facts(f"m.{kind}")
    assert report["graph"] is None
    assert (report["tensors"], report["parameters"]) == (3, 24)
    assert report["dtypes"]["bfloat16"] == {"tensors": 1, "parameters": 20, "nbytes": 40}
    assert report["largest"][0]["name"] == "w"
    assert report["metadata"] == ({"format": "pt"} if kind == "safetensors" else {})


def test_neither_torch_nor_onnxruntime_is_imported_for_graphs_and_safetensors(network: Path, tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "m.safetensors")
    code = (
        "import sys\n"
        "from qtool.cli.app import app\n"
        "app(['inspect', sys.argv[1], '--json'], standalone_mode=False)\n"
        "print([name for name in ('torch', 'onnxruntime') if name in sys.modules], file=sys.stderr)\n"
    )
    for name in ("network.onnx", "m.safetensors"):
        done = subprocess.run(
            [sys.executable, "-c", code, name], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout)["path"] == name
        assert done.stderr.strip() == "[]"


def test_large_weights_are_not_read(facts: Any, run: Any, tmp_path: Path) -> None:
    import tracemalloc

    weights = onnx.numpy_helper.from_array(np.zeros((4096, 1024), np.float32), "w")
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4096])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 1024])
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y], [weights])), "large.onnx")
    facts("large.onnx")
    tracemalloc.start()
    report = facts("large.onnx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report["dtypes"]["float32"]["nbytes"] == 16 * 1024 * 1024
    assert peak < 4 * 1024 * 1024


@pytest.mark.parametrize(
    ("arguments", "problem", "fix"),
    [
        ((), "no model is given", "qtool.toml"),
        (("netwrok.onnx",), "there is no file", "network.onnx"),
        (("network.onnx", "--input-shape", "imgae=1,4,8,10"), "no input 'imgae'", "image="),
        (("network.onnx", "--input-shape", "image=1,4,8"), "has 4 dimensions, not 3", "(batch, 4, side, 10)"),
        (("network.onnx", "--input-shape", "image=1,3,8,10"), "dimension 1 of input 'image' is 4, not 3", "batch"),
        (("network.onnx", "--input-shape", "image=1,4,8,10:int64"), "--input-shape gives one", "':'"),
        (("w.safetensors", "--input-shape", "x=1"), "weights only", "drop --input-shape"),
        (("empty.onnx",), "is empty", "again"),
        (("text.onnx",), "is a text file", ".onnx"),
        (("cut.onnx",), "truncated", "again"),
        (("broken.onnx",), "damaged ONNX model", "again"),
    ],
)
def test_bad_input_is_explained(
    run: Any, network: Path, tmp_path: Path, arguments: tuple[str, ...], problem: str, fix: str
) -> None:
    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors")
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.onnx").write_text("no model")
    whole = network.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "broken.onnx").write_bytes(whole.replace(b"\x04Relu", b"\x7fRelu"))
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    error, hint = result.stderr.strip().splitlines()
    assert problem in error
    assert fix in hint
    assert result.stdout == ""
