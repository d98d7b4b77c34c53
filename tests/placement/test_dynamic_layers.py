"""Layers that quantize their activations as they run: what they compute, and what onnxruntime makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qtool.backends.onnxruntime_cpu.exact_sums import exact_form
from qtool.calib.grid import Grid
from qtool.dynamic_quantizer import quantize_dynamically
from qtool.errors import InputError
from qtool.plan import DynamicPlan
from qtool.planning import build_dynamic_plan
from qtool.runtime.graphs import open_graph
from qtool.runtime.session import Level, Session
from qtool.schemes import DynamicScheme
from qtool.selection import NodeSelection
from tests.graphs_read import reason_of

_S8 = Grid(bits=8, signed=True, symmetric=True)
_SCHEME = DynamicScheme(weights=_S8)
_LAYER = "g (float[n,16] x) => (float[n,12] y) { m = MatMul (x, w)  y = Add (m, b) }"
Arrays = Callable[..., np.ndarray]


def _plan(model: ir.Model, scheme: DynamicScheme = _SCHEME) -> DynamicPlan:
    return build_dynamic_plan(model, scheme, NodeSelection())


def _quantized(model: ir.Model, scheme: DynamicScheme = _SCHEME) -> ir.Model:
    quantize_dynamically(model, _plan(model, scheme))
    return model


def _run(model: ir.Model, level: Level = "all", **feeds: np.ndarray) -> np.ndarray:
    """Runs ``model`` with sums of 32 bits, whatever the processor at hand has."""
    with open_graph(exact_form(_SCHEME)(model), level=level) as session:
        return next(iter(session.run(feeds).values()))


def _kernels(model: ir.Model, folder: Path, level: Level = "extended") -> Counter[str]:
    path = folder / "optimized.onnx"
    Session(ir.to_proto(model).SerializeToString(), threads=1, level=level, optimized_to=path)
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def _stored(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value}


def _dynamic_product(x: np.ndarray, weight: np.ndarray, grid: Grid, *, per_channel: bool) -> np.ndarray:
    """Follows the ONNX text of DynamicQuantizeLinear and MatMulInteger, with scales of whole columns."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    quantized = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    axes = tuple(range(weight.ndim - 1)) if per_channel else None
    least, most = np.minimum(weight.min(axis=axes), 0), np.maximum(weight.max(axis=axes), 0)
    if grid.symmetric:
        step = np.maximum(-least, most) / (grid.high - grid.middle)
        middle = np.full_like(step, grid.middle)
    else:
        step = (most - least) / (grid.high - grid.low)
        middle = np.rint(grid.low - least / step)
    integers = np.clip(np.rint(weight / step) + middle, grid.low, grid.high) - middle
    return np.asarray((quantized @ integers) * (np.float64(scale) * step), np.float64)


@pytest.mark.parametrize("shape", [(7, 16), (3, 5, 16), (2, 3, 5, 16)], ids=["2-d", "3-d", "4-d"])
@pytest.mark.parametrize("per_channel", [True, False], ids=["per-channel", "per-tensor"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("signed", [True, False], ids=["s8", "u8"])
def test_a_layer_computes_what_the_operators_say(
    prepared: Any, random_array: Arrays, shape: tuple[int, ...], per_channel: bool, symmetric: bool, signed: bool
) -> None:
    grid = Grid(bits=8, signed=signed, symmetric=symmetric)
    weight, bias = random_array(16, 12) + np.float32(0.1), random_array(12)
    dims = ",".join(["n", "s", "t"][: len(shape) - 1])
    text = f"g (float[{dims},16] x) => (float[{dims},12] y) {{ m = MatMul (x, w)  y = Add (m, b) }}"
    model = _quantized(prepared(text, w=weight, b=bias), DynamicScheme(weights=grid, per_channel=per_channel))
    x = random_array(*shape, seed=1) * 3 + np.float32(0.7)
    expected = _dynamic_product(x, weight, grid, per_channel=per_channel) + bias
    for level in ("none", "all"):
        np.testing.assert_allclose(_run(model, level, x=x), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected - (x @ weight + bias)).max() > 1e-3, "nothing was quantized"


@pytest.mark.parametrize("level", ["extended", "all"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("signed", [True, False], ids=["s8", "u8"])
@pytest.mark.parametrize("rank", [2, 3], ids=["gemm", "matmul"])
def test_a_layer_and_its_bias_become_one_kernel(
    prepared: Any, random_array: Arrays, tmp_path: Path, level: Level, symmetric: bool, signed: bool, rank: int
) -> None:
    grid = Grid(bits=8, signed=signed, symmetric=symmetric)
    text = _LAYER if rank == 2 else _LAYER.replace("[n,", "[n,t,")
    model = _quantized(prepared(text, w=random_array(16, 12), b=random_array(12)), DynamicScheme(weights=grid))
    assert _kernels(model, tmp_path, level) == {"DynamicQuantizeMatMul": 1}


def test_layers_that_read_the_same_tensor_share_its_quantization(
    prepared: Any, random_array: Arrays, tmp_path: Path
) -> None:
    text = """g (float[n,t,16] x) => (float[n,t,12] q, float[n,t,12] k, float[n,t,12] v)
        { q = MatMul (x, a)  k = MatMul (x, b)  v = MatMul (x, c) }"""
    arrays = {name: random_array(16, 12, seed=seed) for seed, name in enumerate("abc")}
    model = _quantized(prepared(text, **arrays))
    assert [node.op_type for node in model.graph].count("DynamicQuantizeLinear") == 3
    assert _kernels(model, tmp_path) == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 3}


def test_every_column_has_a_scale_and_symmetric_weights_no_zero_point(prepared: Any, random_array: Arrays) -> None:
    weight = random_array(16, 12)
    stored = _stored(_quantized(prepared(_LAYER, w=weight, b=random_array(12))))
    np.testing.assert_allclose(stored["w_scale"], np.abs(weight).max(axis=0) / 127, rtol=1e-6)
    assert stored["w_quantized"].dtype == np.int8
    assert "w_zero_point" not in stored
    free = DynamicScheme(weights=Grid(bits=8, signed=True, symmetric=False))
    stored = _stored(_quantized(prepared(_LAYER, w=weight + np.float32(0.5), b=random_array(12)), free))
    assert stored["w_zero_point"].shape == (12,)


def test_a_gemm_that_transposes_its_weight_stores_it_the_other_way_round(
    prepared: Any, random_array: Arrays, tmp_path: Path
) -> None:
    text = "g (float[n,16] x) => (float[n,12] y) { y = Gemm <transB = 1> (x, w, b) }"
    weight, bias = random_array(12, 16), random_array(12)
    model = _quantized(prepared(text, w=weight, b=bias))
    assert _stored(model)["w_quantized"].shape == (16, 12)
    assert _kernels(model, tmp_path) == {"DynamicQuantizeMatMul": 1}
    x = random_array(9, 16, seed=1)
    expected = _dynamic_product(x, weight.T, _S8, per_channel=True) + bias
    np.testing.assert_allclose(_run(model, x=x), expected, rtol=1e-4, atol=1e-4)


def test_a_bias_of_zeros_is_left_out_and_a_computed_one_added(prepared: Any, random_array: Arrays) -> None:
    without = _quantized(prepared("g (float[n,16] x) => (float[n,12] y) { y = Gemm (x, w) }", w=random_array(16, 12)))
    assert "Add" not in [node.op_type for node in without.graph]
    text = "g (float[n,16] x, float[12] c) => (float[n,12] y) { b = Tanh (c)  y = Gemm (x, w, b) }"
    model = _quantized(prepared(text, w=random_array(16, 12)))
    x, c = random_array(4, 16, seed=1), random_array(12, seed=2)
    expected = _dynamic_product(x, random_array(16, 12), _S8, per_channel=True) + np.tanh(c)
    np.testing.assert_allclose(_run(model, x=x, c=c), expected, rtol=1e-4, atol=1e-4)


def test_tied_weights_stay_one_tensor(prepared: Any, random_array: Arrays) -> None:
    text = "g (float[n,t,8] x) => (float[n,t,8] y) { a = MatMul (x, w)  r = Tanh (a)  y = MatMul (r, w) }"
    model = _quantized(prepared(text, w=random_array(8, 8)))
    assert [name for name, array in _stored(model).items() if array.size == 64] == ["w_quantized"]


def test_tied_weights_that_are_read_both_ways_round_stay_one_tensor(
    prepared: Any, random_array: Arrays, tmp_path: Path
) -> None:
    text = """g (float[n,16] x) => (float[n,16] y)
        { a = Gemm (x, w, b)  r = Tanh (a)  y = Gemm <transB = 1> (r, w, c) }"""
    weight = random_array(16, 8)
    model = _quantized(prepared(text, w=weight, b=random_array(8), c=random_array(16)))
    assert [name for name, array in _stored(model).items() if array.size == 128] == ["w_quantized"]
    assert _kernels(model, tmp_path) == {"DynamicQuantizeMatMul": 2, "Tanh": 1}
    x = random_array(4, 16, seed=1)
    hidden = np.tanh(_dynamic_product(x, weight, _S8, per_channel=False) + random_array(8)).astype(np.float32)
    expected = _dynamic_product(hidden, weight.T, _S8, per_channel=False) + random_array(16)
    np.testing.assert_allclose(_run(model, x=x), expected, rtol=1e-3, atol=1e-3)


def test_a_stack_of_matrices_has_one_scale(prepared: Any, random_array: Arrays, tmp_path: Path) -> None:
    text = "g (float[3,t,16] x) => (float[3,t,12] y) { y = MatMul (x, w) }"
    weight = random_array(3, 16, 12)
    model = _quantized(prepared(text, w=weight))
    assert _kernels(model, tmp_path) == {"DynamicQuantizeMatMul": 1}
    x = random_array(3, 5, 16, seed=1)
    expected = _dynamic_product(x, weight, _S8, per_channel=False)
    np.testing.assert_allclose(_run(model, x=x), expected, rtol=1e-4, atol=1e-4)


def test_outputs_keep_their_names_and_stay_float(prepared: Any, random_array: Arrays) -> None:
    model = _quantized(prepared(_LAYER, w=random_array(16, 12), b=random_array(12)))
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [("y", ir.DataType.FLOAT)]
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("text", "arrays", "node", "reason"),
    [
        (
            "g (float[16] x, float[n,16] o) => (float[12] y, float[n,12] p) { y = MatMul (x, w)  p = MatMul (o, w) }",
            {"w": (16, 12)},
            "/y/MatMul",
            "it multiplies by a vector",
        ),
        (
            "g (float[12,n] x, float[n,16] o) => (float[16,n] y, float[n,12] p)"
            "{ y = MatMul (w, x)  p = MatMul (o, w) }",
            {"w": (16, 12)},
            "/y/MatMul",
            "its weights come first, not last",
        ),
        (
            "g (float[n,16] x, float[16,4] o) => (float[n,4] y, float[n,12] p){ y = MatMul (x, o)  p = MatMul (x, w) }",
            {"w": (16, 12)},
            "/y/MatMul",
            "its weights are computed at run time",
        ),
        (
            "g (float[16,n] x, float[n,16] o) => (float[n,12] y, float[n,12] p)"
            "{ y = Gemm <transA = 1> (x, w)  p = MatMul (o, w) }",
            {"w": (16, 12)},
            "/y/Gemm",
            "it transposes its activations (transA=1)",
        ),
        (
            "g (float[n,3,8,8] x, float[n,16] o) => (float[n,4,6,6] y, float[n,12] p)"
            "{ y = Conv (x, v)  p = MatMul (o, w) }",
            {"w": (16, 12), "v": (4, 3, 3, 3)},
            "/y/Conv",
            "onnxruntime's dynamic convolution, ConvInteger, is slower than float",
        ),
        (
            "g (float[t,n,8] x, float[n,16] o) => (float[t,1,n,4] y, float[n,12] p)"
            "{ y = GRU <hidden_size = 4> (x, v, u)  p = MatMul (o, w) }",
            {"w": (16, 12), "v": (1, 12, 8), "u": (1, 12, 4)},
            "/y/GRU",
            "has no such kernel for GRU",
        ),
    ],
    ids=["vector", "weights-first", "computed", "transA", "conv", "gru"],
)
def test_what_stays_float_says_why(
    prepared: Any, random_array: Arrays, text: str, arrays: dict[str, tuple[int, ...]], node: str, reason: str
) -> None:
    model = prepared(text, **{name: random_array(*shape) for name, shape in arrays.items()})
    plan = _plan(model)
    assert "/p/MatMul" in plan.integer_nodes
    assert node not in plan.integer_nodes
    assert reason in reason_of(plan, node)
    assert "y" in {value.name for value in _quantized(model).graph.outputs}


def test_a_layer_inside_a_branch_stays_float(prepared: Any, random_array: Arrays) -> None:
    text = """g (bool c, float[n,16] x) => (float[n,12] y, float[n,12] z)
        {
            y = If (c) <
                then_branch = a () => (float[n,12] s) { s = MatMul (x, w) },
                else_branch = b () => (float[n,12] t) { t = MatMul (x, w) }
            >
            z = MatMul (x, w)
        }"""
    plan = _plan(prepared(text, w=random_array(16, 12)))
    assert list(plan.integer_nodes) == ["/z/MatMul"]
    assert [skip.reason for skip in plan.skipped] == ["it is inside a branch or a loop"] * 2


def test_weights_that_are_no_numbers_are_named(prepared: Any, random_array: Arrays) -> None:
    weight = random_array(16, 12)
    weight[3, 4] = np.nan
    with pytest.raises(InputError, match="the weight 'w' holds NaN or infinity"):
        _quantized(prepared(_LAYER, w=weight, b=random_array(12)))


def test_weights_keep_within_16_bits_where_the_machine_adds_in_no_more(prepared: Any, random_array: Arrays) -> None:
    scheme = DynamicScheme(weights=_S8, largest_pair=128)
    free = _stored(_quantized(prepared(_LAYER, w=random_array(16, 12), b=random_array(12))))["w_quantized"]
    kept = _stored(_quantized(prepared(_LAYER, w=random_array(16, 12), b=random_array(12)), scheme))["w_quantized"]

    def worst(integers: np.ndarray) -> int:
        wide = integers.astype(int)
        first, second = wide[::2], wide[1::2]
        return int(np.where(np.sign(first) == np.sign(second), np.abs(first + second), 0).max())

    assert worst(free) > 128
    assert worst(kept) <= 128
