"""Every node with what it reads, makes and depends on, and the kernel that runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

_BRANCHES = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
g (bool c, float[n, 4] x) => (float[n, 4] y) {
    [act] a = Relu(x)
    [gelu] b = com.microsoft.Gelu(a)
    [choice] y = If(c) <
        then_branch = t () => (z) { [double] z = Add(b, a) },
        else_branch = e () => (z) { [same] z = Identity(b) }
    >
}"""


def _nodes(run: Any, *arguments: str) -> list[dict[str, Any]]:
    result = run(*arguments, "--nodes", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["schema"] == "qtool.nodes/1"
    return list(found["nodes"])


def test_nodes_stand_in_the_order_of_the_graph_with_their_tensors(run: Any, network: Path) -> None:
    rows = _nodes(run, str(network))
    model = onnx.load(network)
    assert [row["operator"] for row in rows] == [node.op_type for node in model.graph.node]
    conv = rows[0]
    assert conv["attributes"] == {"group": 2, "pads": [1, 1, 1, 1]}
    assert [(one["tensor"], one["dtype"], one["shape"], one["constant"]) for one in conv["inputs"]] == [
        ("image", "float32", ["batch", 4, "side", 10], False),
        ("conv.w", "float32", [6, 2, 3, 3], True),
    ]
    assert conv["outputs"][0]["shape"][:2] == ["batch", 6]
    makers = {name: row["node"] for row in rows for name in (one["tensor"] for one in row["outputs"])}
    for row in rows:
        read = [makers[one["tensor"]] for one in row["inputs"] if one["tensor"] in makers]
        assert row["depends_on"] == list(dict.fromkeys(read))
        assert row["runs_as"] is None


def test_lengths_may_be_given(run: Any, network: Path) -> None:
    rows = _nodes(run, str(network), "--input-shape", "image=2,4,8,10")
    assert rows[0]["outputs"][0]["shape"] == [2, 6, 8, 10]


def test_patterns_choose_nodes_and_those_that_meet_nothing_are_refused(run: Any, network: Path) -> None:
    assert {row["operator"] for row in _nodes(run, str(network), "--include", "Conv*")} == {"Conv", "ConvTranspose"}
    both = _nodes(run, str(network), "--include", "re:Ge.*", "--include", "Relu")
    assert {row["operator"] for row in both} == {"Gemm", "Relu"}
    refused = run(str(network), "--nodes", "--include", "Convv")
    assert refused.exit_code == 2
    assert "did you mean 'Conv'?" in refused.stderr


def test_nodes_of_branches_name_the_node_that_they_are_in(run: Any, tmp_path: Path) -> None:
    onnx.save(parser.parse_model(_BRANCHES), tmp_path / "branches.onnx")
    rows = {row["node"]: row for row in _nodes(run, "branches.onnx")}
    assert (rows["gelu"]["domain"], rows["act"]["domain"]) == ("com.microsoft", "")
    assert {name: row["graph"] for name, row in rows.items()} == {
        "act": None,
        "gelu": None,
        "choice": None,
        "double": "choice",
        "same": "choice",
    }
    assert rows["double"]["depends_on"] == ["gelu", "act"]
    assert rows["choice"]["attributes"] == {"else_branch": "a graph", "then_branch": "a graph"}


def test_kernels_and_their_precision_are_those_of_the_optimized_graph(run: Any, tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[n, 4] x) => (float[n, 3] y)
    <float s = {0.1}, uint8 z = {128}, float[3] ws = {0.1, 0.2, 0.3}, int8[3] wz = {0, 0, 0}>
    {
        [q] xq = QuantizeLinear(x, s, z)
        [dq] xd = DequantizeLinear(xq, s, z)
        [weight] wd = DequantizeLinear<axis = 1>(w, ws, wz)
        [product] p = MatMul(xd, wd)
        [pq] pq = QuantizeLinear(p, s, z)
        [pd] pd = DequantizeLinear(pq, s, z)
        [last] y = Erf(pd)
    }"""
    model = parser.parse_model(text)
    weights = np.arange(12, dtype=np.int8).reshape(4, 3)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    onnx.save(model, tmp_path / "net.onnx")
    rows = {row["node"]: row["runs_as"] for row in _nodes(run, "net.onnx", "--target", "x86")}
    assert rows["product"] == {"kernel": "QLinearMatMul", "precision": "integers", "device": "CPU"}
    assert rows["last"] == {"kernel": "Erf", "precision": "float32", "device": "CPU"}
    assert rows["weight"] == {"kernel": None, "precision": None, "device": "CPU"}
    shown = run("net.onnx", "--nodes", "--target", "x86")
    assert "QLinearMatMul in integers" in shown.stdout


def test_two_lists_of_one_model_are_the_same_text(run: Any, network: Path) -> None:
    texts = {run(str(network), "--nodes", "--json").stdout for _ in range(2)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--include", "Conv"), "--include and --target have no effect without --nodes"),
        (("--nodes", "--macs"), "run them one by one"),
        (("--nodes", "--target", "tensorrt"), "kernels of TensorRT on NVIDIA GPUs cannot be asked here"),
    ],
)
def test_options_that_make_no_sense_are_refused(run: Any, network: Path, options: tuple[str, ...], named: str) -> None:
    result = run(str(network), *options)
    assert result.exit_code == 2
    assert named in result.stderr


def test_tensors_of_images_have_the_layout_that_the_operators_around_them_tell(run: Any, tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[n, 8, 8, 3] x) => (float[n, 8, 8, 4] y) {
        [first] a = Transpose<perm = [0, 3, 1, 2]>(x)
        [conv] b = Conv(a, w)
        [clamp] c = Relu(b)
        [last] d = Transpose<perm = [0, 2, 3, 1]>(c)
        [gate] y = Sigmoid(d)
    }"""
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w"))
    onnx.save(model, tmp_path / "net.onnx")
    rows = _nodes(run, "net.onnx")
    found = {one["tensor"]: one["layout"] for row in rows for one in (*row["inputs"], *row["outputs"])}
    assert found == {"x": "nhwc", "a": "nchw", "w": None, "b": "nchw", "c": "nchw", "d": "nhwc", "y": "nhwc"}
    assert "float32 n × 4 × 8 × 8 NCHW" in " ".join(run("net.onnx", "--nodes").stdout.split())


def test_kernels_of_openvino_are_those_of_the_graph_that_it_executes(run: Any, network: Path) -> None:
    pytest.importorskip("openvino", reason="openvino not installed: make test-openvino")
    rows = _nodes(run, str(network), "--target", "openvino")
    kernels = {row["operator"]: row["runs_as"] for row in rows}
    assert kernels["Conv"] == {"kernel": "Convolution", "precision": "f32", "device": "CPU"}
    assert kernels["Gemm"]["kernel"] == "FullyConnected"
