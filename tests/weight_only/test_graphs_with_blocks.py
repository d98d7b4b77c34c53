"""Graphs with weights in blocks, run in onnxruntime beside the same graph with the dequantized weights in float."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.backends.onnxruntime_cpu.coverage import integer_coverage, optimized_nodes
from qtool.backends.onnxruntime_cpu.weight_only_placement import place_weights
from qtool.graph.constants import has_rows_of_outputs
from qtool.plan import WeightOnlyPlan
from qtool.qdq.insert_blocks import insert_blocks
from qtool.qdq.remove_blocks import RemoveBlocks
from qtool.runtime.graphs import open_graph
from qtool.search.blocks.rounding import rounded_to_nearest
from qtool.selection import NodeSelection
from qtool.weights.blocks.choices import WeightFormat
from qtool.weights.blocks.grid import BlockGrid
from qtool.weights.blocks.quantization import BlockWeight
from qtool.workflows.quantize.prepare import prepare

_NETWORK = """
net (int64[n,5] tokens) => (float[n,5,40] y, float[m,2048] logits)
{
    x = Gather (table, tokens)
    h = MatMul (x, w)
    a = Relu (h)
    y = MatMul (a, v)
    rows = Reshape (x, shape)
    logits = Gemm <transB = 1> (rows, HEAD, b)
}
"""


def _network(*, tied: bool, columns: int) -> ir.Model:
    head = "table" if tied else "head"
    proto = parser.parse_model('<ir_version: 10, opset_import: ["" : 21]> ' + _NETWORK.replace("HEAD", head))
    generator = np.random.default_rng(4)
    shapes = {"table": (2048, columns), "w": (columns, 96), "v": (96, 40), "b": (2048,)}
    if not tied:
        shapes["head"] = (2048, columns)
    for name, shape in shapes.items():
        array = generator.normal(0, 0.1, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([-1, columns], np.int64), "shape"))
    for number, node in enumerate(proto.graph.node):
        node.name = f"node_{number}"
    return prepare(ir.from_proto(proto), integers_between_layers=False)


def _tokens() -> dict[str, np.ndarray]:
    return {"tokens": np.random.default_rng(5).integers(0, 2048, (3, 5))}


def _with_floats(model: ir.Model, plan: WeightOnlyPlan, weights: dict[str, BlockWeight]) -> ir.Model:
    """Returns a copy whose float weights are what the integers stand for."""
    copy = model.clone()
    nodes = {node.name: node for node in model.graph}
    for name, item in plan.weights.items():
        floats = weights[name].dequantized()
        floats = floats if has_rows_of_outputs(nodes[item.nodes[0]]) else floats.T
        copy.graph.initializers[name].const_value = ir.tensor(np.ascontiguousarray(floats), name=name)
    return copy


def _run(model: ir.Model) -> dict[str, np.ndarray]:
    with open_graph(model) as session:
        return session.run(_tokens())


def _quantized(model: ir.Model, grid: BlockGrid, **options: Any) -> tuple[ir.Model, ir.Model]:
    """Returns the quantized graph, and the float one with the same weights."""
    plan = place_weights(model.graph, grid, NodeSelection().reason_to_skip)
    weights = rounded_to_nearest(model, plan)
    options = {"form": WeightFormat.NBITS, "levels": {}, **options}
    return insert_blocks(model.clone(), plan, weights, **options), _with_floats(model, plan, weights)


def _grids(*, least_bits: int = 2) -> list[BlockGrid]:
    return [
        BlockGrid(bits=bits, block=block, symmetric=symmetric)
        for bits in (2, 4, 8)
        if bits >= least_bits
        for block in (16, 32, None)
        for symmetric in (True, False)
    ]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("grid", _grids(), ids=lambda grid: grid.description)
def test_packed_weights_compute_what_they_stand_for(grid: BlockGrid, tied: bool) -> None:
    for columns in (96, 80):
        quantized, expected = _quantized(_network(tied=tied, columns=columns), grid)
        operators = [node.op_type for node in quantized.graph]
        assert (operators.count("MatMulNBits"), operators.count("GatherBlockQuantized")) == (3, 1)
        found, wanted = _run(quantized), _run(expected)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, atol=1e-5)


@pytest.mark.parametrize("grid", _grids(least_bits=4), ids=lambda grid: grid.description)
def test_dequantized_blocks_compute_what_they_stand_for(grid: BlockGrid) -> None:
    quantized, expected = _quantized(_network(tied=True, columns=96), grid, form=WeightFormat.QDQ)
    # onnxruntime makes MatMulNBits of them, with 8-bit products; as they stand they are exact.
    with open_graph(quantized, level="none") as session:
        found = session.run(_tokens())
    for name, value in _run(expected).items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_removing_blocks_gives_the_float_graph_back(tied: bool) -> None:
    for grid in (BlockGrid(bits=4, block=16, symmetric=False), BlockGrid(bits=8, block=32, symmetric=True)):
        quantized, expected = _quantized(_network(tied=tied, columns=96), grid)
        RemoveBlocks()(quantized)
        assert {node.domain for node in quantized.graph} == {""}
        sizes = [value.const_value.size for value in quantized.graph.initializers.values()]
        # A table and a head that were one tensor still are.
        assert sum(size == 2048 * 96 for size in sizes) == (1 if tied else 2)
        found = _run(quantized)
        for name, value in _run(expected).items():
            np.testing.assert_allclose(found[name], value, atol=1e-5)


@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_eight_bits_are_unpacked_as_the_model_loads(symmetric: bool, block: int) -> None:
    grid = BlockGrid(bits=8, block=block, symmetric=symmetric)
    domain = "qtool" if 96 % block == 0 else "qtool.cut"
    levels = {"node_3": 4}
    quantized, _ = _quantized(_network(tied=False, columns=96), grid, levels=levels)
    products = {node.name: node.domain for node in quantized.graph if node.op_type == "MatMulNBits"}
    assert products == {"node_1": domain, "node_3": "com.microsoft", "node_5": domain}
    with optimized_nodes(quantized) as kept:
        operators = sorted(node.op_type for node in kept.values())
    assert operators.count("MatMulNBits") == 1
    # onnxruntime has folded what unpacks them.
    assert not {"Cast", "Sub", "Slice", "Mul"} & set(operators)
    assert [entry.kernel for entry in integer_coverage(quantized).nodes].count("MatMul on unpacked weights") == 2
    removed = RemoveBlocks()(quantized).model
    assert (list(removed.functions), {"qtool", "qtool.cut"} & removed.opset_imports.keys()) == ([], set())
    packed, _ = _quantized(_network(tied=False, columns=96), grid, levels=levels, unpacks=False)
    assert {node.domain for node in packed.graph if node.op_type == "MatMulNBits"} == {"com.microsoft"}
    assert not packed.functions


def test_a_table_and_its_head_are_one_tensor_where_rows_are_whole_blocks() -> None:
    grid = BlockGrid(bits=4, block=32, symmetric=False)
    for columns, count in ((96, 1), (80, 2)):
        quantized, _ = _quantized(_network(tied=True, columns=columns), grid)
        stored = [value.const_value for value in quantized.graph.initializers.values()]
        large = [tensor for tensor in stored if tensor.dtype == ir.DataType.UINT8 and tensor.shape[0] == 2048]
        assert sum(tensor.nbytes >= 2048 * columns // 2 for tensor in large) == count


def test_the_accuracy_level_is_that_of_each_node() -> None:
    grid = BlockGrid(bits=4, block=32, symmetric=False)
    quantized, _ = _quantized(_network(tied=False, columns=96), grid, levels={"node_1": 4})
    levels = {
        node.name: node.attributes["accuracy_level"].as_int()
        for node in quantized.graph
        if node.op_type == "MatMulNBits"
    }
    assert levels == {"node_1": 4, "node_3": 0, "node_5": 0}


def test_the_plan_says_why_layers_stay_float() -> None:
    proto = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        net (float[1,3,8,8] x, float[8,8] k) => (float y, float z, float u)
        <float[4,3,1,1] c = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, float[8] vector = {1, 2, 3, 4, 5, 6, 7, 8}>
        {
            y = Conv (x, c)
            z = MatMul (x, k)
            u = MatMul (x, vector)
        }
    """)
    for number, node in enumerate(proto.graph.node):
        node.name = f"node_{number}"
    plan = place_weights(ir.from_proto(proto).graph, _grids()[0], NodeSelection().reason_to_skip)
    assert not plan.layers
    assert {skip.node: skip.reason for skip in plan.skipped} == {
        "node_0": "onnxruntime has no kernel for convolutions with 8-bit or narrower weights and float activations",
        "node_1": "its second factor is computed as the model runs",
        "node_2": "its weights are no matrix",
    }
