"""Heads that are tied to the table of tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.llm.tied_table import share_tied_table
from qtool.runtime.session import Session

# As mobius writes it, and as onnxruntime-genai's builder does.
_TURNED_HEAD = "rows = Gather (w, ids)  x = Relu (rows)  t = Transpose <perm = [1, 0]> (w)  y = MatMul (x, t)"
_TURNED_TABLE = "t = Transpose <perm = [1, 0]> (w)  rows = Gather (t, ids)  x = Relu (rows)  y = MatMul (x, w)"


def _model(body: str, weight: np.ndarray) -> onnx.ModelProto:
    text = f"net (int64[n,t] ids) => (float[n,t,20] y) <float[n,t,8] x> {{ {body} }}"
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return proto


@pytest.mark.parametrize("body", [_TURNED_HEAD, _TURNED_TABLE])
def test_both_read_the_same_rows_and_outputs_stay(tmp_path: Path, body: str) -> None:
    draws = np.random.default_rng(0)
    rows = draws.normal(size=(20, 8)).astype(np.float32)
    proto = _model(body, rows if body == _TURNED_HEAD else np.ascontiguousarray(rows.T))
    onnx.save(proto, tmp_path / "before.onnx")
    model = ir.from_proto(proto)
    assert share_tied_table(model)
    ir.save(model, tmp_path / "after.onnx")
    feed = {"ids": draws.integers(0, 20, (3, 5))}
    before, after = (Session(tmp_path / name).run(feed)["y"] for name in ("before.onnx", "after.onnx"))
    assert after.shape == (3, 5, 20)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)
    assert "Transpose" not in {node.op_type for node in model.graph}
    (table,) = [value for value in model.graph.initializers.values() if value.shape == ir.Shape((20, 8))]
    assert {use.node.op_type for use in table.uses()} == {"Gather", "Gemm"}
    assert not share_tied_table(model)


def test_weights_that_others_read_as_well_stay(tmp_path: Path) -> None:
    body = f"{_TURNED_HEAD}  z = Identity (w)"
    proto = _model(body, np.zeros((20, 8), np.float32))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, [20, 8]))
    model = ir.from_proto(proto)
    assert not share_tied_table(model)
    assert [node.op_type for node in model.graph].count("MatMul") == 1
