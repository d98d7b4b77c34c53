"""Layers whose values go into a logarithm stay float, and no others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qtool.backends.qdq_placement.logarithms import layers_before_logarithms

Prepared = Callable[..., ir.Model]


def _kept(model: ir.Model) -> set[str]:
    operators = {node.name: node.op_type for node in model.graph}
    return {operators[name] for name in layers_before_logarithms(model.graph)}


def test_every_layer_of_a_spectrogram_is_found(prepared: Prepared) -> None:
    model = prepared(
        """g (float[N,1,64] x) => (float[N,8,7] y) {
        c = Conv <strides = [8]> (x, waves) p = Mul (c, c) t = Transpose <perm = [0,2,1]> (p) m = MatMul (t, bands)
        e = Add (m, tiny) l = Log (e) y = Transpose <perm = [0,2,1]> (l) }""",
        waves=np.ones((8, 1, 16), np.float32),
        bands=np.eye(8, dtype=np.float32),
        tiny=np.float32(1e-7),
    )
    assert _kept(model) == {"Conv", "MatMul"}


def test_the_logarithm_of_a_softmax_keeps_nothing_float(prepared: Prepared) -> None:
    model = prepared(
        "g (float[N,8] x) => (float[N,8] y) { m = MatMul (x, w) s = Softmax (m) y = Log (s) }",
        w=np.ones((8, 8), np.float32),
    )
    assert not _kept(model)


def test_layers_before_an_activation_function_are_left_alone(prepared: Prepared) -> None:
    model = prepared(
        """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
        c = Conv <pads = [1,1,1,1]> (x, w) r = Relu (c) p = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (r)
        e = Add (p, tiny) y = Log (e) }""",
        w=np.ones((4, 3, 3, 3), np.float32),
        tiny=np.float32(1e-3),
    )
    assert not _kept(model)
