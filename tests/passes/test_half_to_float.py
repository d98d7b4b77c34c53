"""Models of half precision compute in float32 with the same weights, and keep the types of their ends."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from qtool.passes.half.half_to_float import HalfToFloat

RANDOM = np.random.default_rng(0)
HALF = "x float16, whole"
TEXTS = {
    HALF: """
        g (float16[n,4] x) => (float16[n,3] y, float16[n,3] r) {
            a = MatMul (x, w)
            r = Relu (a)
            y = Mul (r, half)
        }""",
    "a Cast in, a Cast out": """
        g (float[n,4] x) => (float[n,3] y) {
            h = Cast <to = 10> (x)
            a = MatMul (h, w)
            y = Cast <to = 1> (a)
        }""",
    "a branch": """
        g (float16[n,4] x, bool c) => (float16[n,3] y) {
            a = MatMul (x, w)
            y = If (c) <
                then_branch = t () => (float16[n,3] p) { p = Mul (a, half) },
                else_branch = e () => (float16[n,3] q) { q = Add (a, half) }
            >
        }""",
    "an input passed on": """
        g (float16[n,4] x) => (float16[n,4] x2, float16[n,3] y) {
            x2 = Identity (x)
            y = MatMul (x2, w)
        }""",
    "a filled tensor": """
        g (float16[n,4] x) => (float16[n,4] y) {
            s = Shape (x)
            f = ConstantOfShape <value = float16[1] {2}> (s)
            y = Add (x, f)
        }""",
}


def build(text: str) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    weights = {"w": RANDOM.standard_normal((4, 3)).astype(np.float16), "half": np.float16(0.5)}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items() if f"{name})" in text
    )
    return model


def outputs(model: onnx.ModelProto) -> list[Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((2, 4))
    values = {"tensor(float)": x.astype(np.float32), "tensor(float16)": x.astype(np.float16)}
    feeds = {one.name: values.get(one.type, np.array(True)) for one in session.get_inputs()}
    return list(session.run(None, feeds))


@pytest.mark.parametrize("name", TEXTS)
def test_half_precision_becomes_float_but_for_the_ends(name: str) -> None:
    before = build(TEXTS[name])
    result = HalfToFloat()(ir.from_proto(before))
    assert result.modified
    after = ir.to_proto(result.model)
    onnx.checker.check_model(after)
    assert not any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in after.graph.initializer)
    ends = [
        [(one.name, one.type.tensor_type.elem_type) for one in (*m.graph.input, *m.graph.output)]
        for m in (before, after)
    ]
    assert ends[0] == ends[1]
    for expected, found in zip(outputs(before), outputs(after), strict=True):
        assert expected.dtype == found.dtype
        np.testing.assert_allclose(found, expected, atol=4e-3)
    assert not HalfToFloat()(result.model).modified


def test_operators_of_unknown_domains_leave_the_model_alone() -> None:
    model = build(TEXTS[HALF])
    model.opset_import.add(domain="own", version=1)
    model.graph.node.add(op_type="Own", domain="own", input=["r"], output=["o"])
    assert not HalfToFloat()(ir.from_proto(model)).modified
