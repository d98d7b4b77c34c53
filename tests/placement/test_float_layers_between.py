"""Layers that stay float between integer ones are float in onnxruntime, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from qtool.runtime.session import Session

Arrays = Callable[..., npt.NDArray[np.float32]]
Prepared = Callable[..., ir.Model]
Quantized = Callable[..., ir.Model]


def test_an_excluded_convolution_between_integer_layers_really_stays_float(
    prepared: Prepared,
    random_array: Arrays,
    quantized: Quantized,
    tmp_path: Path,
    kernels_of: Any,
) -> None:
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y) {
            a = Conv (x, w1)
            b = Conv (a, w2)
            c = Conv (b, w3)
            y = Tanh (c)
        }""",
        w1=random_array(4, 4, 1),
        w2=random_array(4, 4, 1, seed=1),
        w3=random_array(4, 4, 1, seed=2),
    )
    graph = quantized(model, [{"x": random_array(2, 4, 8, seed=3)}], exclude=("/b/Conv",))
    kernels = kernels_of(graph, tmp_path)
    assert kernels["Conv"] == 1
    assert kernels["QLinearConv"] == 2


def test_a_float_convolution_whose_values_are_an_output_too_stays_float(
    prepared: Prepared,
    random_array: Arrays,
    quantized: Quantized,
    run_graph: Any,
    tmp_path: Path,
    kernels_of: Any,
) -> None:
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y, float[N,4,8] b) {
            a = Conv (x, w1)
            b = Conv (a, w2)
            c = Conv (b, w3)
            y = Tanh (c)
        }""",
        w1=random_array(4, 4, 1),
        w2=random_array(4, 4, 1, seed=1) * np.logspace(-3, 1, 4, dtype=np.float32).reshape(4, 1, 1),
        w3=random_array(4, 4, 1, seed=2),
    )
    feed = {"x": random_array(2, 4, 8, seed=3)}
    graph = quantized(model, [feed], exclude=("/b/Conv",))
    assert kernels_of(graph, tmp_path)["Conv"] == 1
    given, expected = (run_graph(graph, feed, level)["b"] for level in ("all", "none"))
    for channel in range(4):
        np.testing.assert_allclose(given[:, channel], expected[:, channel], rtol=1e-3, atol=1e-6)


def test_a_transposed_convolution_between_integer_layers_keeps_its_float_weights(
    prepared: Prepared, random_array: Arrays, quantized: Quantized, tmp_path: Path
) -> None:
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y) {
            a = Conv (x, w1)
            b = ConvTranspose (a, w2)
            r = Relu (b)
            c = Conv (r, w3)
            y = Tanh (c)
        }""",
        w1=random_array(4, 4, 1),
        w2=random_array(4, 4, 1, seed=1),
        w3=random_array(4, 4, 1, seed=2),
    )
    graph = quantized(model, [{"x": random_array(2, 4, 8, seed=3)}])
    optimized = tmp_path / "optimized.onnx"
    Session(ir.to_proto(graph).SerializeToString(), threads=1, level="extended", optimized_to=optimized)
    proto = onnx.load(optimized)
    (node,) = [node for node in proto.graph.node if node.op_type == "ConvTranspose"]
    assert node.input[1] in {tensor.name for tensor in proto.graph.initializer}
