"""Ties, branches, outputs, names and odd values come through quantization unharmed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

Arrays = Callable[..., npt.NDArray[np.float32]]
Prepared = Callable[..., ir.Model]
Quantized = Callable[..., ir.Model]
Feed = dict[str, npt.NDArray[Any]]


def test_tied_weights_are_stored_once(
    prepared: Prepared,
    random_array: Arrays,
    quantized: Quantized,
    run_graph: Any,
    signal_to_noise_db: Any,
    stored_in: Any,
) -> None:
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y) {
            a = Conv (x, w)
            b = Conv (a, w)
            y = Tanh (b)
        }""",
        w=random_array(4, 4, 1),
    )
    feed = {"x": random_array(2, 4, 8, seed=3)}
    expected = run_graph(model, feed)["y"]
    graph = quantized(model, [feed])
    assert [array.shape for array in stored_in(graph).values() if array.dtype == np.int8] == [(4, 4, 1), (4,)]
    assert signal_to_noise_db(expected, run_graph(graph, feed, "all")["y"]) > 25.0


def test_a_weight_that_a_float_node_reads_too_stays_right(
    prepared: Prepared,
    random_array: Arrays,
    quantized: Quantized,
    run_graph: Any,
    signal_to_noise_db: Any,
) -> None:
    model = prepared(
        """g (int64[N,T] ids) => (float[N,T,7] y) {
            e = Gather (table, ids)
            h = Tanh (e)
            back = Transpose <perm = [1,0]> (table)
            y = MatMul (h, back)
        }""",
        table=random_array(7, 5),
    )
    feed = {"ids": np.array([[0, 3, 6], [5, 5, 1]], np.int64)}
    expected = run_graph(model, feed)["y"]
    graph = quantized(model, [feed])
    assert signal_to_noise_db(expected, run_graph(graph, feed, "all")["y"]) > 25.0


@pytest.mark.parametrize("first", ["MatMul (x, w1)", "Gemm (x, w1)"])
def test_a_product_read_by_integer_and_float_nodes_runs_on_integers(
    prepared: Prepared,
    random_array: Arrays,
    quantized: Quantized,
    tmp_path: Path,
    first: str,
    kernels_of: Any,
) -> None:
    model = prepared(
        f"""g (float[N,4] x) => (float[N,4] y, float[N,4] z) {{
            a = {first}
            y = MatMul (a, w2)
            z = Tanh (a)
        }}""",
        w1=random_array(4, 4),
        w2=random_array(4, 4, seed=1),
    )
    graph = quantized(model, [{"x": random_array(5, 4, seed=3)}])
    kernels = kernels_of(graph, tmp_path)
    assert kernels["MatMul"] == kernels["Gemm"] == 0


@pytest.mark.parametrize(
    "mover",
    [
        "m = MaxPool <kernel_shape = [3], pads = [1,1]> (a)",
        "m = Transpose <perm = [0,2,1]> (a)",
        "m = Gather <axis = 1> (a, order)",
        "m = Slice (a, zero, four, one)",
    ],
)
def test_a_relu_behind_moved_values_leaves_them_integers(
    prepared: Prepared,
    random_array: Arrays,
    quantized: Quantized,
    tmp_path: Path,
    mover: str,
    kernels_of: Any,
) -> None:
    model = prepared(
        f"""g (float[N,4,4] x) => (float[N,4,4] y) {{
            a = Conv (x, w1)
            {mover}
            r = Relu (m)
            b = Conv (r, w2)
            y = Tanh (b)
        }}""",
        w1=random_array(4, 4, 1),
        w2=random_array(4, 4, 1, seed=1),
        order=np.array([2, 0, 3, 1], np.int64),
        zero=np.array([0], np.int64),
        four=np.array([4], np.int64),
        one=np.array([1], np.int64),
    )
    graph = quantized(model, [{"x": random_array(2, 4, 4, seed=3)}])
    kernels = kernels_of(graph, tmp_path)
    assert kernels["QLinearConv"] == 2
    # One Q where the input comes in and one DQ before Tanh: nothing turns to float and back in between.
    assert (kernels["QuantizeLinear"], kernels["DequantizeLinear"]) == (1, 1)


def test_an_integer_tensor_that_is_an_output_too_is_given_out_in_float(
    prepared: Prepared,
    random_array: Arrays,
    quantized: Quantized,
    tmp_path: Path,
    run_graph: Any,
    kernels_of: Any,
    signal_to_noise_db: Any,
) -> None:
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] a, float[N,4,8] y) {
            a = Conv (x, w1)
            b = Conv (a, w2)
            y = Tanh (b)
        }""",
        w1=random_array(4, 4, 1),
        w2=random_array(4, 4, 1, seed=1),
    )
    feed = {"x": random_array(2, 4, 8, seed=3)}
    expected = run_graph(model, feed)
    graph = quantized(model, [feed])
    got = run_graph(graph, feed, "all")
    assert list(got) == ["a", "y"]
    for name, values in expected.items():
        assert got[name].dtype == np.float32
        assert signal_to_noise_db(values, got[name]) > 25.0
    assert kernels_of(graph, tmp_path)["QLinearConv"] == 2


def test_branches_read_the_same_values_as_before(
    prepared: Prepared,
    random_array: Arrays,
    quantized: Quantized,
    run_graph: Any,
    signal_to_noise_db: Any,
) -> None:
    model = prepared(
        """g (float[N,4,8] x, bool go) => (float[N,4,8] y) {
            a = Conv (x, w)
            b = Conv (a, w)
            y = If (go) <
                then_branch = yes () => (float[N,4,8] t) { t = Conv (b, w) },
                else_branch = no () => (float[N,4,8] e) { e = Sigmoid (a) }
            >
        }""",
        w=random_array(4, 4, 1),
    )
    feeds = [{"x": random_array(2, 4, 8, seed=3), "go": np.array(go)} for go in (True, False)]
    expected = [run_graph(model, feed)["y"] for feed in feeds]
    graph = quantized(model, feeds)
    for feed, values in zip(feeds, expected, strict=True):
        assert signal_to_noise_db(values, run_graph(graph, feed, "all")["y"]) > 20.0


@pytest.mark.parametrize("taken", ["a_scale", "a_zero_point", "a_quantized", "w_scale", "w_quantized"])
def test_names_that_the_model_uses_itself_are_left_to_it(
    prepared: Prepared,
    random_array: Arrays,
    quantized: Quantized,
    taken: str,
    run_graph: Any,
    signal_to_noise_db: Any,
) -> None:
    model = prepared(
        f"""g (float[N,4,8] x) => (float[N,4,8] y) {{
            a = Conv (x, w)
            b = Conv (a, w)
            c = Tanh (b)
            y = Mul (c, {taken})
        }}""",
        w=random_array(4, 4, 1),
        **{taken: np.array(3.0, np.float32)},
    )
    feed = {"x": random_array(2, 4, 8, seed=3)}
    expected = run_graph(model, feed)["y"]
    graph = quantized(model, [feed])
    assert signal_to_noise_db(expected, run_graph(graph, feed, "all")["y"]) > 25.0


@pytest.mark.parametrize("taken", ["a_scale", "a_quantized", "a_dequantized", "w_quantized", "w_dequantized"])
def test_names_of_computed_values_are_left_to_the_model(
    prepared: Prepared,
    random_array: Arrays,
    quantized: Quantized,
    taken: str,
    run_graph: Any,
    signal_to_noise_db: Any,
) -> None:
    model = prepared(
        f"""g (float[N,4,8] x) => (float[N,4,8] y) {{
            a = Conv (x, w)
            {taken} = Conv (a, w)
            y = Tanh ({taken})
        }}""",
        w=random_array(4, 4, 1),
    )
    feed = {"x": random_array(2, 4, 8, seed=3)}
    expected = run_graph(model, feed)["y"]
    graph = quantized(model, [feed])
    assert signal_to_noise_db(expected, run_graph(graph, feed, "all")["y"]) > 25.0


def test_constant_and_dead_activations_give_a_model_that_runs(
    prepared: Prepared,
    random_array: Arrays,
    quantized: Quantized,
    run_graph: Any,
) -> None:
    w1 = random_array(4, 4, 1)
    w1[1] = 0.0
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y) {
            a = Conv (x, w1, b1)
            r = Relu (a)
            b = Conv (r, w2)
            y = Tanh (b)
        }""",
        w1=w1,
        b1=np.array([0.3, 2.0, -0.1, 0.0], np.float32),
        w2=np.zeros((4, 4, 1), np.float32),
    )
    feed = {"x": np.zeros((2, 4, 8), np.float32)}
    expected = run_graph(model, feed)["y"]
    graph = quantized(model, [feed])
    for level in ("none", "all"):
        np.testing.assert_allclose(run_graph(graph, feed, level)["y"], expected, atol=1e-6)


def test_a_large_bias_on_a_small_weight_survives(
    prepared: Prepared,
    random_array: Arrays,
    quantized: Quantized,
    run_graph: Any,
    signal_to_noise_db: Any,
) -> None:
    w = random_array(4, 4, 1)
    w[2] *= np.float32(1e-9)
    model = prepared(
        """g (float[N,4,8] x) => (float[N,4,8] y) {
            a = Conv (x, w, b)
            r = Relu (a)
            c = Conv (r, v)
            y = Tanh (c)
        }""",
        w=w,
        b=np.array([0.1, -0.2, 50.0, 0.0], np.float32),
        v=random_array(4, 4, 1, seed=9) * np.float32(0.02),
    )
    feed = {"x": random_array(2, 4, 8, seed=3)}
    expected = run_graph(model, feed)["y"]
    graph = quantized(model, [feed])
    for level in ("none", "all"):
        assert signal_to_noise_db(expected, run_graph(graph, feed, level)["y"]) > 25.0
