"""Operators without an integer kernel take forms that have one, and others stay what they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from qtool.passes.quantization.einsum_to_matmul import EinsumToMatMul
from qtool.passes.quantization.hard_swish import SpellOutHardSwish
from qtool.passes.quantization.prelu_to_leaky_relu import PReluToLeakyRelu
from qtool.passes.quantization.transposed_conv import TransposedConvToConv
from tests.graphs_read import operators_of

Parsed = Callable[..., onnx.ModelProto]
Applied = Callable[..., ir.Model]
Arrays = Callable[..., npt.NDArray[np.float32]]

# Types between nodes are known by the time that it runs.
_SPELLED_OUT = (common.ShapeInferencePass(), SpellOutHardSwish())


def _between_layers(parsed: Parsed, random_array: Arrays, body: str) -> onnx.ModelProto:
    """Parses nodes that make h of x, between two convolutions."""
    return parsed(
        f"g (float[N,3,4] image) => (float[N,2,4] y) {{ x = Conv (image, w1) {body} y = Conv (h, w2) }}",
        w1=random_array(3, 3, 1),
        w2=random_array(2, 3, 1),
    )


@pytest.mark.parametrize(
    "body",
    [
        "h = HardSwish (x)",
        "gate = HardSigmoid <alpha = 0.3, beta = 0.6> (x) h = Mul (x, gate)",
        "gate = HardSigmoid (x) h = Mul (gate, x)",
    ],
)
def test_a_hard_swish_between_layers_becomes_a_clamp_and_products(
    parsed: Parsed, applied: Applied, random_array: Arrays, body: str
) -> None:
    model = applied(_between_layers(parsed, random_array, body), *_SPELLED_OUT)
    assert operators_of(model) == ["Conv", "Add", "Clip", "Mul", "Mul", "Conv"]


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        ("h = HardSigmoid (x)", ["HardSigmoid"]),
        ("gate = HardSigmoid (x) h = Mul (gate, gate)", ["HardSigmoid", "Mul"]),
        ("gate = HardSigmoid <alpha = -0.3> (x) h = Mul (x, gate)", ["HardSigmoid", "Mul"]),
        ("gate = HardSigmoid (x) a = Mul (x, gate) h = Add (a, gate)", ["HardSigmoid", "Mul", "Add"]),
        ("e = Exp (x) h = HardSwish (e)", ["Exp", "HardSwish"]),
        ("s = HardSwish (x) h = Tanh (s)", ["HardSwish", "Tanh"]),
    ],
)
def test_other_hard_sigmoids_and_those_among_floats_are_left_alone(
    parsed: Parsed, applied: Applied, random_array: Arrays, body: str, operators: list[str]
) -> None:
    model = applied(_between_layers(parsed, random_array, body), *_SPELLED_OUT)
    assert operators_of(model) == ["Conv", *operators, "Conv"]


def test_a_hard_swish_in_front_of_a_normalization_or_a_mean_becomes_a_clamp_and_products(
    parsed: Parsed, applied: Applied, random_array: Arrays
) -> None:
    tensors = {name: np.abs(random_array(3, seed=seed)) + 0.5 for seed, name in enumerate(("s", "b", "m", "v"))}
    model = parsed(
        """g (float[N,3,4] image) => (float[N,3,1] y) {
            x = Conv (image, w)
            n = BatchNormalization (x, s, b, m, v)
            h = HardSwish (n)
            y = ReduceMean <axes = [2]> (h)
        }""",
        w=random_array(3, 3, 1),
        **tensors,
    )
    operators = operators_of(applied(model, *_SPELLED_OUT))
    assert operators == ["Conv", "BatchNormalization", "Add", "Clip", "Mul", "Mul", "ReduceMean"]


@pytest.mark.parametrize(("shape", "operator"), [((1,), "LeakyRelu"), ((1, 1), "LeakyRelu"), ((3, 1), "PRelu")])
def test_one_slope_makes_a_leaky_relu(
    parsed: Parsed, applied: Applied, random_array: Arrays, shape: tuple[int, ...], operator: str
) -> None:
    model = parsed("g (float[N,3,4] x) => (float[N,3,4] y) { y = PRelu (x, slope) }", slope=random_array(*shape))
    assert operators_of(applied(model, PReluToLeakyRelu())) == [operator]


@pytest.mark.parametrize("side", [2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_windows_that_do_not_overlap_become_a_convolution(
    parsed: Parsed, applied: Applied, random_array: Arrays, side: int, bias: bool
) -> None:
    tensors = {"w": random_array(64, 5, side, side)} | ({"b": random_array(5)} if bias else {})
    text = f"y = ConvTranspose <strides = [{side},{side}]> ({'x, w, b' if bias else 'x, w'})"
    model = parsed(f"g (float[N,64,3,4] x) => (float[N,5,{3 * side},{4 * side}] y) {{ {text} }}", **tensors)
    assert operators_of(applied(model, TransposedConvToConv(), tolerance=1e-4)) == ["Conv", "DepthToSpace"]


@pytest.mark.parametrize(
    ("weights", "attributes"),
    [
        ((64, 5, 3, 3), "strides = [2,2]"),
        ((64, 5, 2, 2), "strides = [1,1]"),
        ((64, 5, 2, 2), "strides = [2,2], pads = [1,1,1,1]"),
        ((64, 5, 2, 2), "strides = [2,2], output_padding = [1,1]"),
        ((64, 5, 2, 2), "strides = [2,2], dilations = [2,2]"),
        ((64, 5, 2, 2), "strides = [2,2], group = 2"),
        ((64, 5, 2, 2), 'strides = [2,2], auto_pad = "SAME_UPPER"'),
        ((64, 5, 2, 3), "strides = [2,3]"),
        ((63, 5, 2, 2), "strides = [2,2]"),
    ],
)
def test_other_transposed_convolutions_are_left_alone(
    parsed: Parsed, applied: Applied, random_array: Arrays, weights: tuple[int, ...], attributes: str
) -> None:
    model = parsed(
        f"g (float[N,{weights[0]},3,4] x) => (float[A,B,C,D] y) {{ y = ConvTranspose <{attributes}> (x, w) }}",
        w=random_array(*weights),
    )
    assert operators_of(applied(model, TransposedConvToConv())) == ["ConvTranspose"]


@pytest.mark.parametrize(
    ("equation", "left", "right", "operators"),
    [
        ("bij,bjk->bik", "2,3,4", "2,4,5", ["MatMul"]),
        ("bic,bjc->bij", "2,3,4", "2,5,4", ["Transpose", "MatMul"]),
        ("bhid, bhjd -> bhij", "2,3,4,5", "2,3,6,5", ["Transpose", "MatMul"]),
        ("ib,bjk->bk", "4,2", "2,3,5", ["Einsum"]),
        ("btd,df->btf", "2,3,4", "4,5", ["MatMul"]),
        ("btd,fd->tbf", "2,3,4", "5,4", ["Transpose", "Transpose", "MatMul"]),
        ("ij,jk->ki", "3,4", "4,5", ["MatMul", "Transpose"]),
        ("bij,bjk->bki", "2,3,4", "2,4,5", ["MatMul", "Transpose"]),
        ("bij,bij->bi", "2,3,4", "2,3,4", ["Einsum"]),
        ("bcij,bcij->bc", "2,3,4,5", "2,3,4,5", ["Einsum"]),
        ("i,j->ij", "3", "4", ["Einsum"]),
        ("ii,ij->ij", "3,3", "3,4", ["Einsum"]),
        ("...ij,jk->...ik", "2,3,4", "4,5", ["Einsum"]),
        ("bij,jk", "2,3,4", "4,5", ["Einsum"]),
    ],
)
def test_products_of_matrices_leave_einsum(
    parsed: Parsed, applied: Applied, equation: str, left: str, right: str, operators: list[str]
) -> None:
    rank = len(equation.replace("...", "b").partition("->")[2].strip()) or 3
    result = ",".join("ABCD"[:rank])
    body = f'y = Einsum <equation = "{equation}"> (a, b)'
    model = parsed(f"g (float[{left}] a, float[{right}] b) => (float[{result}] y) {{ {body} }}")
    assert operators_of(applied(model, EinsumToMatMul())) == operators
