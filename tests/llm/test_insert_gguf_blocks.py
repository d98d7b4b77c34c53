"""Graphs whose weights become the blocks of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.formats.weights.gguf_header import read_gguf_header
from qtool.llm.gguf_rows import GgufRows
from qtool.llm.insert_gguf_blocks import insert_gguf_blocks
from qtool.runtime.session import Session
from tests.llm.gguf_files import Raw, dequantized, f32, q4_0, q4_1, q8_0, write_gguf

Quantize = Callable[[np.ndarray], Raw]

# A table that the head is tied to, two projections in one product with their rows in another order, and one left float.
_TEXT = """
net (int64[n,t] ids) => (float[n,t,96] y, float[n,t,128] both)
{
    rows = Gather (table, ids)
    both = MatMul (rows, packed)
    kept = MatMul (rows, plain)
    head = Transpose (table)
    y = MatMul (kept, head)
}
"""


@pytest.fixture
def draws() -> np.random.Generator:
    return np.random.default_rng(0)


def _graph(**weights: np.ndarray) -> onnx.ModelProto:
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {_TEXT}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}"
    return proto


@pytest.mark.parametrize("quantize", [q4_0, q4_1, q8_0])
def test_integers_are_those_of_the_file_and_outputs_stay(
    tmp_path: Path, draws: np.random.Generator, quantize: Quantize
) -> None:
    tensors = {
        "a": quantize(draws.normal(size=(64, 64)).astype(np.float32)),
        "b": quantize(draws.normal(size=(64, 64)).astype(np.float32)),
        "table": quantize(draws.normal(size=(96, 64)).astype(np.float32)),
        "plain": f32(draws.normal(size=(64, 64)).astype(np.float32)),
    }
    path = write_gguf(tmp_path / "model.gguf", {"general.architecture": "llama"}, tensors)
    order = draws.permutation(128)
    packed = np.concatenate([dequantized(tensors["a"]), dequantized(tensors["b"])])[order]
    proto = _graph(
        table=dequantized(tensors["table"]),
        packed=np.ascontiguousarray(packed.T),
        plain=np.ascontiguousarray(dequantized(tensors["plain"]).T),
    )
    onnx.save(proto, tmp_path / "float.onnx")
    model = ir.from_proto(proto)
    rows = GgufRows(path, read_gguf_header(path).entries)
    assert sorted(insert_gguf_blocks(model, rows)) == ["/both", "/rows", "/y"]
    ir.save(model, tmp_path / "packed.onnx")
    feed = {"ids": draws.integers(0, 96, (2, 7))}
    before, after = (Session(tmp_path / name).run(feed) for name in ("float.onnx", "packed.onnx"))
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=0, atol=3e-6 * np.abs(expected).max())
    stored = [onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "packed.onnx").graph.initializer]
    # Blocks, the float weight, and what little a graph needs beside them: every integer and scale is there once.
    quantized = sum(len(raw) for kind, _, raw in tensors.values() if kind != 0)
    assert sum(array.nbytes for array in stored) < 1.02 * (quantized + 64 * 64 * 4) + 500
    assert sum(array.nbytes for array in stored if array.dtype == np.float16) == quantized - sum(
        array.nbytes for array in stored if array.dtype == np.uint8
    )


def test_rows_of_two_types_in_one_product_stay_float(tmp_path: Path, draws: np.random.Generator) -> None:
    tensors = {"a": q4_0(draws.normal(size=(64, 64))), "b": q8_0(draws.normal(size=(64, 64)))}
    path = write_gguf(tmp_path / "model.gguf", {"general.architecture": "llama"}, tensors)
    rows = GgufRows(path, read_gguf_header(path).entries)
    both = np.concatenate([dequantized(tensor) for tensor in tensors.values()])
    assert rows.matching(both) is None
    found = rows.matching(both[:64][::-1].copy())
    assert found is not None
    np.testing.assert_array_equal(found.dequantized(), both[:64][::-1])


def test_weights_that_are_not_in_the_file_to_the_bit_stay_float(tmp_path: Path, draws: np.random.Generator) -> None:
    stored = q4_1(draws.normal(size=(64, 64)))
    path = write_gguf(tmp_path / "model.gguf", {"general.architecture": "llama"}, {"w": stored})
    rows = GgufRows(path, read_gguf_header(path).entries)
    weight = dequantized(stored).copy()
    assert rows.matching(weight) is not None
    weight[3, 5] = np.nextafter(weight[3, 5], np.float32(9))
    assert rows.matching(weight) is None
    assert rows.matching(np.zeros((4, 32), np.float32)) is None
