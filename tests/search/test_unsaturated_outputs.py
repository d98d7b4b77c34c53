"""Outputs are looked at before the gate that ends a model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import parser

from qtool.search.logits_view import with_logits
from qtool.search.output_evaluator import OutputEvaluator


def _model(body: str) -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[n,4] x) => (float y) {{ {body} }}'
    proto = parser.parse_model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return ir.from_proto(proto)


def _run(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, {"x": x}), strict=True))


@pytest.mark.parametrize(
    "end", ["y = Sigmoid (a)", "y = Softmax (a)", "y = Tanh (a)", "s = Sigmoid (a)\n y = Identity (s)"]
)
def test_what_the_last_gate_reads_is_given_out(end: str) -> None:
    x = np.random.default_rng(0).normal(0, 3, (5, 4)).astype(np.float32)
    model = _model(f"a = Exp (x)\n {end}")
    outputs = _run(with_logits(model), x)
    assert list(outputs) == ["y_before_gate"]
    np.testing.assert_allclose(outputs["y_before_gate"], np.exp(x), rtol=1e-5)
    assert [output.name for output in model.graph.outputs] == ["y"]


_SOFTMAXES = {
    "logits": """m = ReduceMax <axes = [1], keepdims = 1> (a)
        d = Sub (a, m)
        e = Exp (d)
        s = ReduceSum (e, axis)
        y = Div (e, s)""",
    # As JAX writes it.
    "logits in other shapes": """m = ReduceMax <axes = [1], keepdims = 0> (a)
        low = Constant <value_float = -1e30> ()
        n = Max (low, m)
        r = Unsqueeze (n, axis)
        size = Shape (a)
        w = Expand (r, size)
        d = Sub (a, w)
        e = Exp (d)
        s = ReduceSum (e, axis)
        t = Expand (s, size)
        y = Div (e, t)""",
    "exponents": """d = Sub (a, half)
        e = Exp (d)
        s = ReduceSum (e, axis)
        y = Div (e, s)""",
}


@pytest.mark.parametrize("form", _SOFTMAXES)
def test_a_softmax_may_be_spelled_out(form: str) -> None:
    x = np.random.default_rng(0).normal(0, 3, (5, 4)).astype(np.float32)
    constants = "axis = Constant <value_ints = [1]> ()\n half = Constant <value_float = 0.5> ()"
    model = _model(f"{constants}\n a = Neg (x)\n {_SOFTMAXES[form]}")
    probabilities = np.exp(-x) / np.exp(-x).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(_run(model, x)["y"], probabilities, rtol=1e-4)
    outputs = _run(with_logits(model), x)
    assert list(outputs) == ["y_before_gate"]
    np.testing.assert_allclose(outputs["y_before_gate"], -x - 0.5 * (form == "exponents"), rtol=1e-4)


def test_a_quotient_of_something_else_is_no_softmax() -> None:
    body = """axis = Constant <value_ints = [1]> ()
        e = Exp (x)
        b = Exp (e)
        s = ReduceSum (b, axis)
        y = Div (e, s)"""
    assert [output.name for output in with_logits(_model(body)).graph.outputs] == ["y"]


@pytest.mark.parametrize("body", ["y = Exp (x)", "a = Sigmoid (x)\n y = Exp (a)", "y = Sigmoid (x)"])
def test_outputs_without_a_gate_behind_a_layer_stay(body: str) -> None:
    assert [output.name for output in with_logits(_model(body)).graph.outputs] == ["y"]


def test_noise_that_a_gate_hides_is_seen_before_it() -> None:
    """Far from zero, a Sigmoid makes nothing of a large difference."""
    original, changed = (
        _model("a = Neg (x)\n y = Sigmoid (a)"),
        _model("b = Add (x, x)\n a = Neg (b)\n y = Sigmoid (a)"),
    )
    feeds = [{"x": np.full((3, 4), -20.0, np.float32)}]
    assert OutputEvaluator(original, feeds).sqnr_db(changed) > 100
    # The values before are twice as large: the noise is as strong as the signal.
    before = OutputEvaluator(original, feeds, view=with_logits)
    assert before.sqnr_db(changed) == pytest.approx(0.0, abs=1e-3)
