"""Small float graphs in the forms that exporters write, for the contract of the prepare passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper, parser


def _model(text: str, **tensors: npt.NDArray[np.generic]) -> onnx.ModelProto:
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    return model


def _random(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed + sum(shape)).normal(0.0, 0.5, shape).astype(np.float32)


def _positive(*shape: int) -> npt.NDArray[np.float32]:
    return np.abs(_random(*shape)) + np.float32(0.5)


def conv_batchnorm_scale_shift() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
            a = Conv <pads = [1,1,1,1]> (x, w)
            b = BatchNormalization (a, gamma, beta, mean, var)
            c = Mul (b, factor)
            d = Add (offset, c)
            y = Relu (d)
        }""",
        w=_random(4, 3, 3, 3),
        gamma=_random(4),
        beta=_random(4, seed=1),
        mean=_random(4, seed=2),
        var=_positive(4),
        factor=_random(4, 1, 1),
        offset=_random(1, 4, 1, 1),
    )


def grouped_conv_transpose_batchnorm() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4,5,5] x) => (float[N,6,10,10] y) {
            a = ConvTranspose <group = 2, strides = [2,2], kernel_shape = [2,2]> (x, w, bias)
            y = BatchNormalization <epsilon = 0.001> (a, gamma, beta, mean, var)
        }""",
        w=_random(4, 3, 2, 2),
        bias=_random(6, seed=5),
        gamma=_random(6),
        beta=_random(6, seed=1),
        mean=_random(6, seed=2),
        var=_positive(6),
    )


def gemm_chain() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,6] x) => (float[N,3] y) {
            a = Gemm <transB = 1> (x, w1, b1)
            b = Mul (a, factor)
            c = Relu (b)
            d = MatMul (c, w2)
            y = Add (d, b2)
        }""",
        w1=_random(5, 6),
        b1=_random(5),
        factor=_random(5, seed=3),
        w2=_random(5, 3),
        b2=_random(3),
    )


def three_dimensional_linear() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,T,6] x) => (float[N,T,5] y) {
            wt = Transpose <perm = [1,0]> (w)
            a = MatMul (x, wt)
            b = Add (bias, a)
            y = LayerNormalization (b, scale, shift)
        }""",
        w=_random(5, 6),
        bias=_random(5),
        scale=_positive(5),
        shift=_random(5, seed=1),
    )


def normalized_input() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,6,6] x) => (float[N,2,4,4] y, float[N,3,6,6] rest) {
            a = Sub (x, mean)
            b = Div (a, std)
            y = Conv (b, w)
            c = Sub (one, x)
            d = Div (c, hole)
            rest = Clip (d, low, high)
        }""",
        mean=_random(3, 1, 1),
        std=_positive(3, 1, 1),
        w=_random(2, 3, 3, 3),
        one=np.array(1.0, np.float32),
        hole=np.array([[[2.0]], [[0.0]], [[-4.0]]], np.float32),
        low=np.array(-10.0, np.float32),
        high=np.array(10.0, np.float32),
    )


def means_by_attribute() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,4,5] x) => (float[N,3,1,1] kept, float[N,3] dropped, float[N,3,1,5] rows, float[N,1,1,1] all) {
            kept = ReduceMean <axes = [2,3]> (x)
            dropped = ReduceMean <axes = [-1,-2], keepdims = 0> (x)
            rows = ReduceMean <axes = [2]> (x)
            all = ReduceMean <axes = [1,2,3]> (x)
        }"""
    )


def means_by_input() -> onnx.ModelProto:
    return _model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[N,3,4,5] x) => (float[N,3,1,1] kept, float[N,3] dropped, float[1,1,1,1] all) {
            kept = ReduceMean (x, axes)
            dropped = ReduceMean <keepdims = 0> (x, axes)
            all = ReduceMean (x)
        }""",
        axes=np.array([3, 2], np.int64),
    )


def opset_7() -> onnx.ModelProto:
    return _model(
        """<ir_version: 3, opset_import: ["" : 7]>
        g (float[2,3,8,8] x, float[4,3,3,3] w, float[4] gamma, float[4] beta, float[4] mean, float[4] var)
            => (float[2,64] y) {
            a = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (x, w)
            b = BatchNormalization (a, gamma, beta, mean, var)
            c = Clip <min = 0.0, max = 6.0> (b)
            d = MaxPool <kernel_shape = [2,2], strides = [2,2]> (c)
            e = Dropout <ratio = 0.5> (d)
            y = Flatten (e)
        }""",
        w=_random(4, 3, 3, 3),
        gamma=_random(4),
        beta=_random(4, seed=1),
        mean=_random(4, seed=2),
        var=_positive(4),
    )


def opset_9() -> onnx.ModelProto:
    return _model(
        """<ir_version: 4, opset_import: ["" : 9]>
        g (float[2,3,8,8] x) => (float[2,4,1,4] y) {
            a = Conv <kernel_shape = [3,3]> (x, w, bias)
            b = LeakyRelu <alpha = 0.2> (a)
            c = Slice <axes = [2,3], starts = [0,1], ends = [4,5]> (b)
            d = ReduceMean <axes = [2], keepdims = 0> (c)
            y = Unsqueeze <axes = [2]> (d)
        }""",
        w=_random(4, 3, 3, 3),
        bias=_random(4),
    )


def opset_11() -> onnx.ModelProto:
    return _model(
        """<ir_version: 6, opset_import: ["" : 11]>
        g (float[2,6,4,4] x) => (float[2,3,16] y, float[2,3,4] z) {
            left, right = Split <axis = 1, split = [3,3]> (x)
            a = Add (left, right)
            b = Softmax <axis = 3> (a)
            s = ReduceSum <axes = [2], keepdims = 0> (b)
            z = Clip (s, low)
            y = Reshape (a, shape)
        }""",
        low=np.array(0.1, np.float32),
        shape=np.array([2, 3, -1], np.int64),
    )


def constants_as_nodes() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,2,4,4] x) => (float[N,2,4,4] y, float[N,32] z) {
            w0 = Constant <value = float[2,2,1,1] {1.5, -0.5, 0.25, 2.0}> ()
            w = Identity (w0)
            a = Conv (x, w)
            two = Constant <value_float = 2.0> ()
            y = Mul (a, two)
            shape = Constant <value_ints = [0, 32]> ()
            z = Reshape (y, shape)
        }"""
    )


def initializers_as_inputs() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,4,4] x, float[2,3,1,1] w, float[2,1,1] factor) => (float[N,2,4,4] y) {
            a = Conv (x, w)
            y = Mul (a, factor)
        }""",
        w=_random(2, 3, 1, 1),
        factor=_random(2, 1, 1),
    )


def tied_convolutions() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,4,4] x) => (float[N,3,4,4] y) {
            a = Conv (x, w)
            b = Mul (a, factor)
            c = Conv (b, w)
            y = Add (c, offset)
        }""",
        w=_random(3, 3, 1, 1),
        factor=_random(3, 1, 1),
        offset=_random(3, 1, 1, seed=4),
    )


def tied_embedding() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[N,T] ids) => (float[N,T,7] logits) {
            e = Gather (table, ids)
            h = Tanh (e)
            back = Transpose <perm = [1,0]> (table)
            logits = MatMul (h, back)
        }""",
        table=_random(7, 5),
    )


def shared_bias_and_factor() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,4,4] x) => (float[N,2,4,4] y) {
            a = Conv (x, w1, bias)
            b = Mul (a, factor)
            c = Conv (x, w2, bias)
            d = Mul (c, factor)
            e = Add (b, d)
            y = Sub (e, factor)
        }""",
        w1=_random(2, 3, 1, 1),
        w2=_random(2, 3, 1, 1, seed=8),
        bias=_random(2),
        factor=_random(2, 1, 1),
    )


def inner_outputs() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,4,4] x) => (float[N,2,4,4] a, float[N,2,4,4] b, float[N,2,4,4] y) {
            a = Conv (x, w)
            b = Mul (a, factor)
            c = Conv (x, w2)
            d = Mul (c, factor)
            y = Add (c, d)
        }""",
        w=_random(2, 3, 1, 1),
        w2=_random(2, 3, 1, 1, seed=8),
        factor=_random(2, 1, 1),
    )


def functions() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N,3,4,4] x) => (float[N,2,4,4] y, float[N,3,4,4] z) {
            a = Conv (x, w)
            y = local.Swish (a)
            z = local.Swish (x)
        }
        <domain: "local", opset_import: ["" : 17]>
        Swish (x) => (y) {
            s = Sigmoid (x)
            y = Mul (x, s)
        }""",
        w=_random(2, 3, 1, 1),
    )


def branches() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2,3,4,4] x) => (float[2,2,4,4] y) {
            a = Conv (x, w)
            b = Mul (a, factor)
            total = ReduceSum <keepdims = 0> (x)
            condition = Greater (total, zero)
            y = If (condition) <
                then_branch = yes () => (float[2,2,4,4] t) { p = Sub (b, shift) t = Div (p, factor) },
                else_branch = no () => (float[2,2,4,4] e) { q = Conv (x, w) e = Mul (q, factor) }
            >
        }""",
        w=_random(2, 3, 1, 1),
        factor=_positive(2, 1, 1),
        shift=_random(2, 1, 1),
        zero=np.array(0.0, np.float32),
    )


def loop() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2,3] x) => (float[2,3] y) {
            start = MatMul (x, w)
            y = Loop (trips, keep, start) <
                body = step (int64 i, bool go, float[2,3] state) => (bool go_on, float[2,3] next) {
                    go_on = Identity (go)
                    h = MatMul (state, w)
                    k = Add (h, bias)
                    next = Tanh (k)
                }
            >
        }""",
        w=_random(3, 3),
        bias=_random(3),
        trips=np.array(3, np.int64),
        keep=np.array(True),
    )


def explicit_padding_and_no_ops() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,5,5] x) => (float[N,2,4,4] y) {
            p = Pad (x, pads)
            a = Conv <kernel_shape = [2,2]> (p, w)
            b = Cast <to = 1> (a)
            c = Mul (b, one)
            d = Add (c, zero)
            e = Dropout (d)
            t = Transpose <perm = [0,2,3,1]> (e)
            u = Transpose <perm = [0,3,1,2]> (t)
            v = Identity (u)
            y = Slice (v, starts, ends, axes)
        }""",
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        w=_random(2, 3, 2, 2),
        one=np.array(1.0, np.float32),
        zero=np.array(0.0, np.float32),
        starts=np.array([1, 1], np.int64),
        ends=np.array([5, 5], np.int64),
        axes=np.array([2, 3], np.int64),
    )


def torch_flatten_by_shape() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,4,4] x) => (float[N,5] y) {
            a = Conv <kernel_shape = [1,1]> (x, w)
            m = GlobalAveragePool (a)
            s = Shape (m)
            zero = Constant <value = int64 {0}> ()
            n = Gather <axis = 0> (s, zero)
            axes = Constant <value = int64[1] {0}> ()
            n1 = Unsqueeze (n, axes)
            rest = Constant <value = int64[1] {-1}> ()
            shape = Concat <axis = 0> (n1, rest)
            f = Reshape (m, shape)
            y = Gemm <alpha = 1.0, beta = 1.0, transB = 1> (f, w2, b2)
        }""",
        w=_random(4, 3, 1, 1),
        w2=_random(5, 4),
        b2=_random(5),
    )


def attention() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,T,6] x) => (float[N,T,6] y) {
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            kt = Transpose <perm = [0,2,1]> (k)
            s = MatMul (q, kt)
            r = Div (s, root)
            p = Softmax <axis = -1> (r)
            o = MatMul (p, v)
            a = Add (o, bias)
            y = Add (a, x)
        }""",
        wq=_random(6, 6),
        wk=_random(6, 6, seed=1),
        wv=_random(6, 6, seed=2),
        root=np.array(2.449489742783178, np.float32),
        bias=_random(6),
    )


def integer_arithmetic() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[N,3] i, double[N,3] d) => (int64[N,3] j, double[N,3] e) {
            a = Sub (i, three)
            j = Div (a, three)
            b = Sub (d, third)
            e = Div (b, third)
        }""",
        three=np.array(3, np.int64),
        third=np.array(1.0 / 3.0, np.float64),
    )


def computed_weights() -> onnx.ModelProto:
    return _model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,2,4,4] x) => (float[1,3,4,4] y) {
            w = Mul (raw, gain)
            a = Conv (x, w)
            m = GlobalAveragePool (a)
            k = Mul (a, m)
            y = Mul (k, row)
        }""",
        raw=_random(3, 2, 1, 1),
        gain=_random(3, 1, 1, 1),
        row=_random(1, 1, 1, 4),
    )


_GRAPHS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    builder.__name__: builder
    for builder in (
        conv_batchnorm_scale_shift,
        grouped_conv_transpose_batchnorm,
        gemm_chain,
        three_dimensional_linear,
        normalized_input,
        means_by_attribute,
        means_by_input,
        opset_7,
        opset_9,
        opset_11,
        constants_as_nodes,
        initializers_as_inputs,
        tied_convolutions,
        tied_embedding,
        shared_bias_and_factor,
        inner_outputs,
        functions,
        branches,
        loop,
        explicit_padding_and_no_ops,
        torch_flatten_by_shape,
        attention,
        integer_arithmetic,
        computed_weights,
    )
}


@pytest.fixture(params=sorted(_GRAPHS))
def float_model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    """One small float model, valid and runnable as it stands."""
    model = _GRAPHS[request.param]()
    model.metadata_props.add(key="author", value="a person")
    return model
