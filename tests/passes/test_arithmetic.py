"""Subtraction and division by constants become what runs on integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from qtool.passes.quantization.arithmetic import CanonicalArithmetic
from tests.graphs_read import operators_of

Parsed = Callable[..., onnx.ModelProto]
Applied = Callable[..., ir.Model]


def test_subtraction_and_division_by_constants_are_rewritten(parsed: Parsed, applied: Applied) -> None:
    model = parsed(
        "g (float[N,3,4] x) => (float[N,3,4] y) { a = Sub (x, mean) y = Div (a, std) }",
        mean=np.array([[0.485], [0.456], [0.406]], np.float32),
        std=np.array([[0.229], [0.224], [0.225]], np.float32),
    )
    after = applied(model, CanonicalArithmetic())
    assert operators_of(after) == ["Add", "Mul"]
    assert [node.name for node in after.graph] == ["/a/Sub", "/y/Div"]


@pytest.mark.parametrize(
    ("body", "constant"),
    [
        ("y = Sub (c, x)", np.float32(1.0)),
        ("y = Div (c, x)", np.float32(1.0)),
        ("y = Sub (x, x)", np.float32(1.0)),
        ("y = Div (x, c)", np.array([1.0, 0.0, 2.0], np.float32)),
    ],
)
def test_what_has_no_such_form_is_left_alone(parsed: Parsed, body: str, constant: npt.NDArray[Any]) -> None:
    model = ir.from_proto(parsed(f"g (float[N,3] x) => (float[N,3] y) {{ {body} }}", c=constant))
    before = ir.to_proto(model)
    result = CanonicalArithmetic()(model)
    assert not result.modified
    assert ir.to_proto(result.model) == before


def test_integers_are_left_alone(parsed: Parsed, applied: Applied) -> None:
    model = parsed(
        "g (int64[N,3] x) => (int64[N,3] y) { a = Sub (x, c) y = Div (a, c) }",
        c=np.array(3, np.int64),
    )
    assert operators_of(applied(model, CanonicalArithmetic())) == ["Sub", "Div"]


def test_a_divisor_that_others_read_keeps_its_value(parsed: Parsed, applied: Applied) -> None:
    model = parsed(
        """g (float[N,3] x) => (float[N,3] y) {
            a = Div (x, c)
            b = Sub (a, c)
            d = Div (b, c)
            y = Pow (d, c)
        }""",
        c=np.array(2.0, np.float32),
    )
    assert operators_of(applied(model, CanonicalArithmetic())) == ["Mul", "Add", "Mul", "Pow"]


def test_a_divisor_whose_reciprocal_leaves_float32_keeps_the_outputs(parsed: Parsed, applied: Applied) -> None:
    model = parsed(
        "g (float[N,3] x) => (float[N,3] y) { y = Div (x, c) }",
        c=np.array([1e-40, 1.0, 3e38], np.float32),
    )
    with np.errstate(over="ignore"):
        applied(model, CanonicalArithmetic())


def test_an_output_of_the_model_keeps_its_name(parsed: Parsed, applied: Applied) -> None:
    model = parsed(
        "g (float[N,3] x) => (float[N,3] a, float[N,3] y) { a = Sub (x, c) y = Relu (a) }",
        c=np.float32(0.5),
    )
    after = applied(model, CanonicalArithmetic())
    assert [value.name for value in after.graph.outputs] == ["a", "y"]


def test_branches_are_left_alone(parsed: Parsed, applied: Applied) -> None:
    model = parsed(
        """g (float[2,3] x) => (float[2,3] y) {
            total = ReduceSum <keepdims = 0> (x)
            go = Less (total, c)
            y = If (go) <
                then_branch = yes () => (float[2,3] t) { t = Sub (x, c) },
                else_branch = no () => (float[2,3] e) { e = Div (x, c) }
            >
        }""",
        c=np.float32(0.5),
    )
    after = applied(model, CanonicalArithmetic())
    assert {"Sub", "Div"} <= {node.op_type for node in ir.traversal.RecursiveGraphIterator(after.graph)}
