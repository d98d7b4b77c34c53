"""What the usual passes leave of graphs that hold nothing but work for them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtool.passes.optimization.choice import operators_for, usual_passes
from qtool.passes.optimization.pipeline import node_counts, run_passes
from qtool.progress import Silent

Graph = Callable[..., onnx.ModelProto]


def _optimized(model: onnx.ModelProto) -> ir.Model:
    graph = ir.from_proto(model)
    run_passes(graph, usual_passes(None), operators_for(None), Silent())
    return graph


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("spelled-shapes", {"Reshape": 2, "MatMul": 1, "Tanh": 1}),
        ("views-in-a-row", {"Relu": 1, "Tanh": 1, "Reshape": 2}),
        ("no-ops", {"Relu": 1, "Greater": 1, "Sigmoid": 1}),
        (
            "pairs",
            {"Transpose": 1, "Tanh": 1, "Relu": 1, "Cast": 1, "Slice": 1, "Neg": 1, "Concat": 1, "Clip": 1},
        ),
        ("repeated-work", {"MatMul": 1, "Tanh": 2, "Split": 1, "Sub": 1, "Concat": 1}),
        (
            "loops-to-unroll",
            {"Gemm": 3, "Tanh": 3, "Sin": 9, "Add": 5, "Unsqueeze": 3, "Concat": 1, "Loop": 1, "Cos": 1, "Identity": 1},
        ),
        (
            "known-branches",
            {"MatMul": 1, "Tanh": 1, "ReduceSum": 1, "Greater": 1, "If": 1, "Identity": 1, "Neg": 1, "Unsqueeze": 1},
        ),
        ("half-precision", {"Conv": 1, "BatchNormalization": 1, "Mul": 2, "Relu": 1, "Cast": 1}),
        ("conv-batchnorm", {"Conv": 1, "Relu": 1}),
    ],
)
def test_nothing_is_left_but_work(graph: Graph, name: str, expected: Mapping[str, int]) -> None:
    assert node_counts(_optimized(graph(name))) == expected


def test_a_length_that_reshape_passes_on_stays_free(graph: Graph) -> None:
    after = _optimized(graph("spelled-shapes"))
    shapes = [node.inputs[1] for node in after.graph if node.op_type == "Reshape"]
    stored = [value.const_value.numpy().tolist() for value in shapes if value is not None and value.const_value]
    assert stored == [[0, 0, 2, 6], [0, 0, 4]]


def test_slices_keep_what_they_cut(graph: Graph) -> None:
    (cut,) = [node for node in _optimized(graph("pairs")).graph if node.op_type == "Slice"]
    bounds = [value.const_value.numpy().tolist() for value in cut.inputs[1:] if value is not None and value.const_value]
    assert bounds == [[1, 0], [3, 6], [1, 2], [1, 2]]


def test_random_numbers_are_drawn_as_often_as_before() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) {
        a = RandomNormalLike (x) b = RandomNormalLike (x) y = Sub (a, b) }"""
    assert node_counts(_optimized(onnx.parser.parse_model(text)))["RandomNormalLike"] == 2


def test_integers_of_quantized_models_stay_integers() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,3] y, float[N,3] z)
        <int8[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float scale = {0.5}> {
        w1 = DequantizeLinear (w, scale) y = MatMul (x, w1) w2 = DequantizeLinear (w, scale) z = MatMul (x, w2) }"""
    model = onnx.parser.parse_model(text)
    assert node_counts(_optimized(model))["DequantizeLinear"] == 2


def test_products_of_integers_keep_the_form_that_the_runtime_knows() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2,4] x) => (float[2,3] y)
        <int8[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float scale = {0.5}, uint8 zero = {3}, float[3] bias = {1,2,3}> {
        q = QuantizeLinear (x, scale, zero) d = DequantizeLinear (q, scale, zero) w1 = DequantizeLinear (w, scale)
        m = MatMul (d, w1) y = Add (m, bias) }"""
    counts = node_counts(_optimized(onnx.parser.parse_model(text)))
    assert counts == {"QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1, "Add": 1}


def test_the_file_does_not_grow_by_what_is_folded() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,1] x) => (float[N,500000] y)
        <float[1,1] w = {2.0}, int64[2] shape = {1, 500000}> { wide = Expand (w, shape) y = MatMul (x, wide) }"""
    after = _optimized(onnx.parser.parse_model(text))
    assert node_counts(after)["Expand"] == 1
    assert sum(value.const_value.nbytes for value in after.graph.initializers.values() if value.const_value) < 100


def _chains(links: int) -> onnx.ModelProto:
    """Returns 20 chains of so many links of five nodes, of which two are needed."""
    rng, nodes, constants, outputs = np.random.default_rng(1), [], [], []
    for chain in range(20):
        value = "x"
        for link in range(links):
            at = f"{chain}_{link}"
            weights = rng.normal(0, 0.5, (4, 4, 1, 1)).astype(np.float32)
            constants.append(numpy_helper.from_array(weights, f"w_{at}"))
            constants.append(numpy_helper.from_array(rng.normal(1, 0.1, (4, 1, 1)).astype(np.float32), f"s_{at}"))
            nodes += [
                helper.make_node("Conv", [value, f"w_{at}"], [f"c_{at}"]),
                helper.make_node("Mul", [f"c_{at}", f"s_{at}"], [f"m_{at}"]),
                helper.make_node("Transpose", [f"m_{at}"], [f"t_{at}"], perm=[0, 2, 3, 1]),
                helper.make_node("Transpose", [f"t_{at}"], [f"u_{at}"], perm=[0, 3, 1, 2]),
                helper.make_node("Tanh", [f"u_{at}"], [f"v_{at}"]),
            ]
            value = f"v_{at}"
        outputs.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", 4, 2, 2]))
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 2, 2])
    graph = helper.make_graph(nodes, "chains", [source], outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _seconds(links: int) -> float:
    model = _chains(links)
    # What the garbage collector takes depends on all that other tests have left.
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        after = _optimized(model)
        taken = time.process_time() - start
    finally:
        gc.enable()
    assert node_counts(after) == {"Conv": 20 * links, "Tanh": 20 * links}
    return taken


@pytest.mark.slow
def test_twice_the_nodes_take_about_twice_the_time() -> None:
    _seconds(2)
    ratios = [_seconds(24) / _seconds(12) for _ in range(3)]
    assert min(ratios) < 2.8


@pytest.mark.slow
def test_a_large_graph_takes_time_in_proportion() -> None:
    ratio = _seconds(200) / _seconds(50)
    assert ratio < 4 * 1.4
