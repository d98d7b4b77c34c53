"""Multiplications and additions of constants disappear into the layer before them, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from qtool.passes.quantization.fold_affine import FoldAffine
from tests.graphs_read import operators_of

Parsed = Callable[..., onnx.ModelProto]
Applied = Callable[..., ir.Model]
Arrays = Callable[..., npt.NDArray[np.float32]]


def _batchnorm(random_array: Arrays, channels: int) -> dict[str, npt.NDArray[Any]]:
    return {
        "gamma": random_array(channels),
        "beta": random_array(channels, seed=1),
        "mean": random_array(channels, seed=2),
        "var": np.abs(random_array(channels, seed=3)) + np.float32(0.1),
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_batchnorm_folds_into_a_convolution(
    parsed: Parsed, applied: Applied, random_array: Arrays, bias: bool, group: int, epsilon: float
) -> None:
    tensors = {"w": random_array(6, 3 // group, 3, 3)} | ({"b": random_array(6)} if bias else {})
    model = parsed(
        f"""g (float[N,3,8,8] x) => (float[N,6,6,6] y) {{
            a = Conv <group = {group}> (x, w{", b" if bias else ""})
            y = BatchNormalization <epsilon = {epsilon}> (a, gamma, beta, mean, var)
        }}""",
        **tensors,
        **_batchnorm(random_array, 6),
    )
    assert operators_of(applied(model, FoldAffine())) == ["Conv"]


def test_a_whole_chain_folds(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed(
        """g (float[N,3,8] x) => (float[N,4,6] y) {
            a = Conv (x, w)
            b = BatchNormalization (a, gamma, beta, mean, var)
            c = Mul (factor, b)
            d = Add (c, offset)
            e = Mul (d, two)
            y = Relu (e)
        }""",
        w=random_array(4, 3, 3),
        factor=random_array(4, 1),
        offset=random_array(1, 4, 1),
        two=np.float32(2.0),
        **_batchnorm(random_array, 4),
    )
    assert operators_of(applied(model, FoldAffine())) == ["Conv", "Relu"]


@pytest.mark.parametrize("group", [1, 2, 4])
def test_batchnorm_folds_into_a_transposed_convolution(
    parsed: Parsed, applied: Applied, random_array: Arrays, group: int
) -> None:
    model = parsed(
        f"""g (float[N,4,5,5] x) => (float[N,8,10,10] y) {{
            a = ConvTranspose <group = {group}, strides = [2,2], kernel_shape = [2,2]> (x, w, b)
            y = BatchNormalization (a, gamma, beta, mean, var)
        }}""",
        w=random_array(4, 8 // group, 2, 2),
        b=random_array(8),
        **_batchnorm(random_array, 8),
    )
    assert operators_of(applied(model, FoldAffine())) == ["ConvTranspose"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [(5,), (1, 5), (1,), None])
def test_factors_and_offsets_fold_into_gemm(
    parsed: Parsed, applied: Applied, random_array: Arrays, transposed: int, bias: tuple[int, ...] | None
) -> None:
    model = parsed(
        f"""g (float[N,6] x) => (float[N,5] y) {{
            a = Gemm <transB = {transposed}, alpha = 0.5> (x, w{"" if bias is None else ", b"})
            c = Mul (a, factor)
            y = Add (c, offset)
        }}""",
        w=random_array(*((5, 6) if transposed else (6, 5))),
        **({} if bias is None else {"b": random_array(*bias)}),
        factor=random_array(5),
        offset=random_array(1, 5, seed=1),
    )
    assert operators_of(applied(model, FoldAffine())) == ["Gemm"]


def test_batchnorm_behind_gemm_folds(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed(
        """g (float[N,6] x) => (float[N,5] y) {
            a = Gemm <transB = 1> (x, w, b)
            y = BatchNormalization (a, gamma, beta, mean, var)
        }""",
        w=random_array(5, 6),
        b=random_array(5),
        **_batchnorm(random_array, 5),
    )
    assert operators_of(applied(model, FoldAffine())) == ["Gemm"]


@pytest.mark.parametrize("bias", [(4, 1), (4, 4)])
def test_a_gemm_whose_bias_differs_from_row_to_row_keeps_its_meaning(
    parsed: Parsed, applied: Applied, random_array: Arrays, bias: tuple[int, ...]
) -> None:
    model = parsed(
        """g (float[4,6] x) => (float[4,4] y) {
            a = Gemm (x, w, b)
            y = Mul (a, factor)
        }""",
        w=random_array(6, 4),
        b=random_array(*bias),
        factor=random_array(4),
    )
    applied(model, FoldAffine())


def test_a_weighted_bias_is_left_alone(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed(
        """g (float[N,6] x) => (float[N,4] y) {
            a = Gemm <beta = 0.5> (x, w, b)
            y = Add (a, offset)
        }""",
        w=random_array(6, 4),
        b=random_array(4),
        offset=random_array(4, seed=1),
    )
    assert operators_of(applied(model, FoldAffine())) == ["Gemm", "Add"]


def test_a_constant_that_differs_along_other_axes_is_left_alone(
    parsed: Parsed, applied: Applied, random_array: Arrays
) -> None:
    model = parsed(
        """g (float[N,3,4,4] x) => (float[N,4,4,4] y, float[N,4,4,4] z, float[N,4,4,4] u) {
            a = Conv (x, w1)
            y = Mul (a, columns)
            c = Conv (x, w2)
            z = Add (c, whole)
            e = Conv (x, w3)
            u = Add (e, plane)
        }""",
        w1=random_array(4, 3, 1, 1),
        w2=random_array(4, 3, 1, 1, seed=1),
        w3=random_array(4, 3, 1, 1, seed=2),
        # As long as there are channels, but along the last axis.
        columns=random_array(4),
        whole=random_array(4, 4, 4),
        plane=random_array(1, 1, 4, 4),
    )
    assert operators_of(applied(model, FoldAffine())).count("Conv") == 3
    assert len(operators_of(applied(model, FoldAffine()))) == 6


def test_a_constant_that_adds_dimensions_is_left_alone(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed(
        """g (float[N,3,4] x) => (float[1,N,4,4] y) {
            a = Conv (x, w)
            y = Mul (a, factor)
        }""",
        w=random_array(4, 3, 1),
        factor=random_array(1, 1, 4, 1),
    )
    assert operators_of(applied(model, FoldAffine())) == ["Conv", "Mul"]


def test_a_tied_weight_is_not_changed_for_its_other_reader(
    parsed: Parsed, applied: Applied, random_array: Arrays
) -> None:
    model = parsed(
        """g (float[N,3,4,4] x) => (float[N,3,4,4] y) {
            a = Conv (x, w)
            b = Mul (a, factor)
            y = Conv (b, w)
        }""",
        w=random_array(3, 3, 1, 1),
        factor=random_array(3, 1, 1),
    )
    assert operators_of(applied(model, FoldAffine())) == ["Conv", "Mul", "Conv"]


def test_a_shared_bias_is_not_changed_for_its_other_reader(
    parsed: Parsed, applied: Applied, random_array: Arrays
) -> None:
    model = parsed(
        """g (float[N,3,4,4] x) => (float[N,4,4,4] y, float[N,4,4,4] z) {
            a = Conv (x, w1, b)
            y = Mul (a, factor)
            z = Conv (x, w2, b)
        }""",
        w1=random_array(4, 3, 1, 1),
        w2=random_array(4, 3, 1, 1, seed=1),
        b=random_array(4),
        factor=random_array(4, 1, 1),
    )
    assert operators_of(applied(model, FoldAffine())) == ["Conv", "Conv"]


def test_an_output_that_others_read_is_left_alone(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed(
        """g (float[N,3,4,4] x) => (float[N,4,4,4] y, float[N,4,4,4] z, float[N,4,4,4] c, float[N,4,4,4] u) {
            a = Conv (x, w1)
            y = Mul (a, factor)
            z = Relu (a)
            c = Conv (x, w2)
            u = Mul (c, factor)
        }""",
        w1=random_array(4, 3, 1, 1),
        w2=random_array(4, 3, 1, 1, seed=1),
        factor=random_array(4, 1, 1),
    )
    assert operators_of(applied(model, FoldAffine())) == ["Conv", "Mul", "Relu", "Conv", "Mul"]


def test_an_output_that_is_multiplied_by_itself_is_left_alone(
    parsed: Parsed, applied: Applied, random_array: Arrays
) -> None:
    model = parsed(
        "g (float[N,3,4,4] x) => (float[N,4,4,4] y) { a = Conv (x, w) y = Mul (a, a) }",
        w=random_array(4, 3, 1, 1),
    )
    assert operators_of(applied(model, FoldAffine())) == ["Conv", "Mul"]


def test_a_weight_that_a_caller_may_override_is_left_alone(
    parsed: Parsed, applied: Applied, random_array: Arrays
) -> None:
    model = parsed(
        """g (float[N,3,4,4] x, float[4,3,1,1] w) => (float[N,4,4,4] y) {
            a = Conv (x, w)
            y = Mul (a, factor)
        }""",
        w=random_array(4, 3, 1, 1),
        factor=random_array(4, 1, 1),
    )
    assert operators_of(applied(model, FoldAffine())) == ["Conv", "Mul"]


def test_a_batchnorm_that_trains_is_left_alone(parsed: Parsed, random_array: Arrays) -> None:
    model = ir.from_proto(
        parsed(
            """g (float[N,3,4,4] x) => (float[N,4,4,4] y, float[4] m, float[4] v) {
                a = Conv (x, w)
                y, m, v = BatchNormalization <training_mode = 1> (a, gamma, beta, mean, var)
            }""",
            w=random_array(4, 3, 1, 1),
            **_batchnorm(random_array, 4),
        )
    )
    assert operators_of(FoldAffine()(model).model) == ["Conv", "BatchNormalization"]


def test_an_output_that_a_branch_reads_is_left_alone(parsed: Parsed, applied: Applied, random_array: Arrays) -> None:
    model = parsed(
        """g (float[N,3,4,4] x) => (float[N,4,4,4] y) {
            a = Conv (x, w)
            b = Mul (a, factor)
            total = ReduceSum <keepdims = 0> (b)
            go = Less (total, big)
            y = If (go) <
                then_branch = yes () => (float[N,4,4,4] t) { t = Mul (a, factor) },
                else_branch = no () => (float[N,4,4,4] e) { e = Relu (b) }
            >
        }""",
        w=random_array(4, 3, 1, 1),
        factor=random_array(4, 1, 1),
        big=np.float32(1e9),
    )
    assert operators_of(applied(model, FoldAffine()))[:2] == ["Conv", "Mul"]
