"""A Pad that names its axes pads what it did, and runs between convolutions of integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qtool.passes.quantization.pad_all_axes import PadAllAxes


@st.composite
def _pads(draw: Any) -> tuple[list[int], list[int], str]:
    axes = draw(st.lists(st.integers(0, 3), unique=True, max_size=4))
    signed = [axis - draw(st.sampled_from([0, 4])) for axis in axes]
    pads = draw(st.lists(st.integers(0, 2), min_size=2 * len(axes), max_size=2 * len(axes)))
    mode = draw(st.sampled_from(["constant", "edge", "reflect"]))
    return signed, pads, mode


@given(_pads(), st.booleans())
def test_padding_stays_what_it_is(drawn: tuple[list[int], list[int], str], computed: bool) -> None:
    axes, pads, mode = drawn
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 4, 5])]
    constants = [numpy_helper.from_array(np.array(axes, np.int64), "axes")]
    feeds: dict[str, npt.NDArray[Any]] = {"x": np.arange(180, dtype=np.float32).reshape(3, 3, 4, 5)}
    if computed:
        inputs.append(helper.make_tensor_value_info("pads", onnx.TensorProto.INT64, [len(pads)]))
        feeds["pads"] = np.array(pads, np.int64)
    else:
        constants.append(numpy_helper.from_array(np.array(pads, np.int64), "pads"))
    graph = helper.make_graph(
        [helper.make_node("Pad", ["x", "pads", "", "axes"], ["y"], mode=mode)],
        "g",
        inputs,
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * 4)],
        constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    changed = ir.to_proto(PadAllAxes()(ir.from_proto(proto)).model)
    onnx.checker.check_model(changed, full_check=True)
    assert all(len(node.input) <= 3 for node in changed.graph.node if node.op_type == "Pad")
    (expected,) = ReferenceEvaluator(proto).run(None, feeds)
    (result,) = ReferenceEvaluator(changed).run(None, feeds)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("value", ["", "value"])
def test_a_pad_between_convolutions_of_integers_runs(
    run: Any, save: Callable[..., Path], tmp_path: Path, value: str
) -> None:
    rng = np.random.default_rng(8)
    tensors = {"w": rng.normal(0, 0.2, (8, 8, 3, 3)).astype(np.float32), "pads": np.ones(4, np.int64)}
    tensors |= {"axes": np.array([2, -1])} | ({"value": np.float32(-1)} if value else {})
    save(
        "net.onnx",
        f"""g (float[n,8,8,8] x) => (float[n,8,k] y) {{
            a = Conv (x, w)  b = Pad (a, pads, {value}, axes)  c = Conv (b, w)
            y = ReduceMax <keepdims = 0> (c, last)
        }}""",
        **{name: np.asarray(array) for name, array in tensors.items()},
        last=np.array([3]),
    )
    x = rng.normal(0, 1, (24, 8, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    outcome = run("quantize", "net.onnx", "--calib-data", "x.npz", "--target", "x86-avx2", "-o", "q.onnx", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["coverage"]["integer_nodes"] >= 2
    expected, result = (onnxruntime.InferenceSession(name).run(None, {"x": x})[0] for name in ("net.onnx", "q.onnx"))
    assert np.square(expected).sum() > 300 * np.square(expected - result).sum()
