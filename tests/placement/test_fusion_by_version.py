"""Pins patterns of which onnxruntime's versions make different things, and what it makes of those that no kernel takes.

Each row holds every operator of the optimized graph, Q and DQ included, and the version since which it is so. The table
of the differences in docs/reference/onnxruntime-versions.md says the same in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from qtool.errors import RuntimeRefusedError

# A graph that is built node by node; see the fixture.
Pattern = Any
Build = Callable[[Pattern], None]
Version = tuple[int, ...]
# By the version that began it: what is left of a pattern. Each holds until the next.
Since = Mapping[Version, Mapping[str, int]]

_OLDEST = (1, 20)


def _image(pattern: Pattern, **form: Any) -> str:
    return str(pattern.pair(pattern.input(1, 4, 6, 6), **form))


def _rows(pattern: Pattern) -> str:
    return str(pattern.pair(pattern.input(5, 6)))


def _close(pattern: Pattern, tensor: str, **form: Any) -> None:
    pattern.output(pattern.pair(tensor, **form))


def _depth_to_space(pattern: Pattern) -> None:
    _close(pattern, pattern.node("DepthToSpace", _image(pattern), blocksize=2))


def _linear_resize(pattern: Pattern) -> None:
    scales = pattern.constant(np.array([1, 1, 2, 2], np.float32))
    _close(pattern, pattern.node("Resize", _image(pattern), "", scales, mode="linear"))


def _convolution(bias: str) -> Build:
    def build(pattern: Pattern) -> None:
        inputs = [_image(pattern), pattern.weight(4, 4, 3, 3, axis=0), _bias(pattern, bias, 4)]
        _close(pattern, pattern.node("Conv", *inputs))

    return build


def _gemm(bias: str, *, closed: bool = True) -> Build:
    def build(pattern: Pattern) -> None:
        product = pattern.node("Gemm", _rows(pattern), pattern.weight(6, 3, axis=1), _bias(pattern, bias, 3))
        _close(pattern, product) if closed else pattern.output(product)

    return build


def _bias(pattern: Pattern, kind: str, channels: int) -> str:
    if kind == "float":
        return str(pattern.constant(np.ones(channels, np.float32)))
    # The activations' scale is 0.05.
    return str(pattern.bias(channels, input_scale=0.06 if kind == "off scale" else 0.05))


def _matmul_and_bias(*shape: int, closed: bool) -> Build:
    def build(pattern: Pattern) -> None:
        product = pattern.node("MatMul", pattern.pair(pattern.input(*shape)), pattern.weight(6, 3, axis=1))
        total = pattern.node("Add", product, _bias(pattern, "float", 3))
        _close(pattern, total) if closed else pattern.output(total)

    return build


def _float_layer(operator: str, *shape: int, clamped: bool = False) -> Build:
    def build(pattern: Pattern) -> None:
        weights = np.random.default_rng(0).normal(0.0, 1.0, shape).astype(np.float32)
        x = _rows(pattern) if operator == "Gemm" else _image(pattern)
        y = pattern.node(operator, x, pattern.constant(weights))
        _close(pattern, pattern.node("Relu", y) if clamped else y, zero_point=0)

    return build


def _matmul_by_row(pattern: Pattern) -> None:
    _close(pattern, pattern.node("MatMul", _rows(pattern), pattern.weight(6, 3, axis=0)))


def _weights_alone(*, block: int | None) -> Build:
    def build(pattern: Pattern) -> None:
        pattern.opset = 21
        integers = pattern.constant(np.random.default_rng(0).integers(-127, 127, (64, 32)).astype(np.int8))
        scales = pattern.constant(np.full((64 // block, 32) if block else 32, 0.01, np.float32))
        form = {"axis": 0, "block_size": block} if block else {"axis": 1}
        weights = pattern.node("DequantizeLinear", integers, scales, **form)
        pattern.output(pattern.node("MatMul", pattern.input(2, 64), weights))

    return build


def _left(pairs: int | tuple[int, int], **kernels: int) -> dict[str, int]:
    """Returns what is left: so many Q and DQ, and these operators."""
    q, dq = (pairs, pairs) if isinstance(pairs, int) else pairs
    return {name: n for name, n in {"QuantizeLinear": q, "DequantizeLinear": dq, **kernels}.items() if n}


_DIFFERENT: Mapping[str, tuple[Build, Since]] = {
    "DepthToSpace": (
        _depth_to_space,
        {_OLDEST: _left(2, DepthToSpace=1), (1, 22): _left(1, DepthToSpace=1)},
    ),
    "linear Resize": (_linear_resize, {_OLDEST: _left(1, Resize=1), (1, 27): _left(2, Resize=1)}),
    "Conv with a float bias": (
        _convolution("float"),
        {_OLDEST: _left((2, 3), Conv=1), (1, 22): _left(1, QLinearConv=1)},
    ),
    "Conv with a bias off its scale": (
        _convolution("off scale"),
        {_OLDEST: _left(1, QLinearConv=1), (1, 27): _left((2, 4), Conv=1)},
    ),
    "Gemm with a float bias": (_gemm("float"), {_OLDEST: _left((2, 3), Gemm=1), (1, 22): _left(1, QGemm=1)}),
    "Gemm with a float bias and output": (_gemm("float", closed=False), {_OLDEST: _left((1, 2), Gemm=1)}),
    "Gemm with a bias off its scale": (_gemm("off scale"), {_OLDEST: _left(1, QGemm=1)}),
    "MatMul and bias": (
        _matmul_and_bias(5, 6, closed=True),
        {_OLDEST: _left((2, 3), Gemm=1), (1, 22): _left(1, QGemm=1)},
    ),
    "MatMul and bias with a float output": (
        _matmul_and_bias(5, 6, closed=False),
        {_OLDEST: _left((1, 2), Gemm=1)},
    ),
    "batched MatMul and bias": (
        _matmul_and_bias(2, 5, 6, closed=True),
        {_OLDEST: _left((2, 1), MatMulIntegerToFloat=1, Add=1), (1, 22): _left(1, QGemm=1, Reshape=2)},
    ),
    "batched MatMul and bias with a float output": (
        _matmul_and_bias(2, 5, 6, closed=False),
        {_OLDEST: _left((1, 0), MatMulIntegerToFloat=1, Add=1), (1, 22): _left((1, 2), Gemm=1, Reshape=2)},
    ),
    "MatMul weights with a scale for each row": (
        _matmul_by_row,
        {_OLDEST: _left(1, QLinearMatMul=1), (1, 32): _left((2, 3), MatMul=1)},
    ),
    # A layer that is to stay float must have no pair on one of its sides, or a Sum of one tensor behind it. Nothing is
    # won where weights are rounded without an integer kernel: they are dequantized in every run.
    "float Conv": (
        _float_layer("Conv", 4, 4, 3, 3),
        {_OLDEST: _left(2, Conv=1), (1, 22): _left(1, QLinearConv=1)},
    ),
    "float Gemm": (_float_layer("Gemm", 6, 3), {_OLDEST: _left(2, Gemm=1), (1, 22): _left(1, QGemm=1)}),
    "float ConvTranspose": (
        _float_layer("ConvTranspose", 4, 2, 2, 2),
        {_OLDEST: _left(2, ConvTranspose=1), (1, 22): _left((2, 3), ConvTranspose=1)},
    ),
    "float ConvTranspose and Relu": (
        _float_layer("ConvTranspose", 4, 2, 2, 2, clamped=True),
        {_OLDEST: _left(2, ConvTranspose=1), (1, 23): _left((2, 3), ConvTranspose=1)},
    ),
    "weights alone, by channel": (
        _weights_alone(block=None),
        {_OLDEST: _left((0, 1), MatMul=1), (1, 25): {"MatMulNBits": 1}},
    ),
    "weights alone, by block": (
        _weights_alone(block=32),
        {_OLDEST: _left((0, 1), MatMul=1), (1, 25): {"MatMulNBits": 1}},
    ),
}


@pytest.mark.parametrize("name", list(_DIFFERENT))
def test_a_pattern_becomes_what_the_table_says_of_this_version(
    pattern: Pattern, tmp_path: Path, runtime: Version, name: str
) -> None:
    build, since = _DIFFERENT[name]
    build(pattern)
    assert pattern.optimized(tmp_path) == since[max(begun for begun in since if begun <= runtime)]


@pytest.mark.parametrize("alike", [True, False])
def test_zero_points_that_differ_by_channel_run_since_1_27(
    pattern: Pattern, tmp_path: Path, runtime: Version, alike: bool
) -> None:
    integers = pattern.constant(np.random.default_rng(0).integers(0, 255, (4, 4, 3, 3)).astype(np.uint8))
    scales = pattern.constant(np.full(4, 0.01, np.float32))
    zeros = pattern.constant(np.array([128, 128, 128, 128 if alike else 100], np.uint8))
    weights = pattern.node("DequantizeLinear", integers, scales, zeros, axis=0)
    _close(pattern, pattern.node("Conv", _image(pattern), weights))
    assert pattern.optimized(tmp_path) == _left(1, QLinearConv=1)
    feed = {"x0": np.ones((1, 4, 6, 6), np.float32)}
    if alike or runtime >= (1, 27):
        (values,) = pattern.run(feed).values()
        assert values.shape == (1, 4, 4, 4)
    else:
        with pytest.raises(RuntimeRefusedError) as refused:
            pattern.run(feed)
        assert "without --weights-asymmetric" in refused.value.fix


def test_matmul_weights_with_a_scale_for_each_row_stop_before_1_32(pattern: Pattern, runtime: Version) -> None:
    _matmul_by_row(pattern)
    feed = {"x0": np.ones((5, 6), np.float32)}
    if runtime >= (1, 32):
        (values,) = pattern.run(feed).values()
        (exact,) = pattern.run(feed, level="none").values()
        np.testing.assert_allclose(values, exact, atol=1e-6)
    else:
        with pytest.raises(RuntimeRefusedError):
            pattern.run(feed)


@pytest.mark.parametrize("relus", [1, 2])
def test_two_relus_behind_a_sum_of_a_tensor_with_itself_did_not_load_for_a_while(
    pattern: Pattern, tmp_path: Path, runtime: Version, relus: int
) -> None:
    x = _image(pattern)
    y = pattern.node("Add", x, x)
    for _ in range(relus):
        y = pattern.node("Relu", y)
    _close(pattern, y, zero_point=0)
    if relus == 2 and (1, 22) <= runtime <= (1, 30):
        with pytest.raises(RuntimeRefusedError, match="two nodes with same node name"):
            pattern.optimized(tmp_path)
    else:
        assert pattern.optimized(tmp_path) == _left(1, QLinearAdd=1)


def _norm(count: int) -> Callable[[Pattern], list[str]]:
    return lambda pattern: [pattern.constant(np.ones(4, np.float32)) for _ in range(count)]


def _constant(array: Any) -> Callable[[Pattern], list[str]]:
    return lambda pattern: [pattern.constant(np.asarray(array))]


def _second(pattern: Pattern) -> list[str]:
    return [_image(pattern)]


def _nothing(pattern: Pattern) -> list[str]:
    return []


# What it reads beside the tensor, its attributes and the opset that has it; two pairs in and out where it reads two.
_FLOAT_ONLY: Mapping[str, tuple[Callable[[Pattern], list[str]], Mapping[str, Any], int]] = {
    "Sub": (_second, {}, 14),
    "Div": (_second, {}, 14),
    "Max": (_second, {}, 14),
    "Min": (_second, {}, 14),
    "Pow": (_constant(np.float32(2.0)), {}, 14),
    "Pad": (_constant([0, 0, 1, 1, 0, 0, 1, 1]), {}, 14),
    "PRelu": (_constant(np.full((4, 1, 1), 0.1, np.float32)), {}, 14),
    "SpaceToDepth": (_nothing, {"blocksize": 2}, 14),
    "ReduceMean": (_nothing, {"axes": [2, 3]}, 14),
    "InstanceNormalization": (_norm(2), {}, 14),
    "BatchNormalization": (_norm(4), {}, 14),
    "LayerNormalization": (_constant(np.ones(6, np.float32)), {}, 17),
    "Gelu": (_nothing, {}, 20),
    **{name: (_nothing, {}, 14) for name in ("Tanh", "Erf", "HardSigmoid", "Elu", "Softplus", "Exp", "Sqrt", "Neg")},
}


@pytest.mark.parametrize("operator", list(_FLOAT_ONLY))
def test_operators_without_an_integer_kernel_keep_every_pair(pattern: Pattern, tmp_path: Path, operator: str) -> None:
    others, attributes, pattern.opset = _FLOAT_ONLY[operator]
    x = _image(pattern)
    _close(pattern, pattern.node(operator, x, *others(pattern), **attributes))
    assert pattern.optimized(tmp_path) == _left(3 if others is _second else 2, **{operator: 1})


def test_a_transposed_convolution_dequantizes_its_weights_in_every_run(pattern: Pattern, tmp_path: Path) -> None:
    _close(pattern, pattern.node("ConvTranspose", _image(pattern), pattern.weight(4, 2, 2, 2)))
    assert pattern.optimized(tmp_path) == _left((2, 3), ConvTranspose=1)


def test_hard_swish_stays_float_in_two_parts(pattern: Pattern, tmp_path: Path) -> None:
    _close(pattern, pattern.node("HardSwish", _image(pattern)))
    assert pattern.optimized(tmp_path) == _left(2, HardSigmoid=1, Mul=1)


def test_the_largest_values_and_their_places_stay_float(pattern: Pattern, tmp_path: Path) -> None:
    values, _ = pattern.nodes_of("TopK", _image(pattern), pattern.constant(np.array([2])), outputs=2)
    _close(pattern, values)
    assert pattern.optimized(tmp_path) == _left(2, TopK=1)


@pytest.mark.parametrize(
    ("operator", "kernel"), [("Softmax", "QLinearSoftmax"), ("Where", "QLinearWhere"), ("ArgMax", "ArgMax")]
)
def test_softmax_choices_and_places_of_the_largest_have_kernels(
    pattern: Pattern, tmp_path: Path, operator: str, kernel: str
) -> None:
    if operator == "Softmax":
        _close(pattern, pattern.node("Softmax", _image(pattern)), scale=1 / 256, zero_point=0)
    elif operator == "Where":
        chosen = pattern.constant(np.array([True, False] * 3))
        _close(pattern, pattern.node("Where", chosen, _image(pattern), _image(pattern, scale=0.02)))
    else:
        places = pattern.node("ArgMax", _image(pattern), axis=1)
        pattern.outputs.append(helper.make_tensor_value_info(places, TensorProto.INT64, None))
    pairs = {"Softmax": (1, 1), "Where": (2, 1), "ArgMax": (1, 0)}[operator]
    assert pattern.optimized(tmp_path) == _left(pairs, **{kernel: 1})


@pytest.mark.parametrize("layers", [1, 2])
def test_activations_quantized_as_they_run_for_one_layer_alone_are_fused(
    pattern: Pattern, tmp_path: Path, layers: int
) -> None:
    quantized, scale, zero = pattern.nodes_of("DynamicQuantizeLinear", pattern.input(5, 6), outputs=3)
    for seed in range(layers):
        weights = pattern.constant(np.random.default_rng(seed).integers(-127, 127, (6, 3)).astype(np.int8))
        product = pattern.node("MatMulInteger", quantized, weights, zero, pattern.constant(np.int8(0)))
        scales = pattern.node("Mul", scale, pattern.constant(np.float32(0.01)))
        pattern.output(pattern.node("Mul", pattern.node("Cast", product, to=TensorProto.FLOAT), scales))
    apart = {"DynamicQuantizeLinear": 1, "MatMulInteger": 2, "Cast": 2, "Mul": 3}
    assert pattern.optimized(tmp_path) == ({"DynamicQuantizeMatMul": 1} if layers == 1 else apart)
