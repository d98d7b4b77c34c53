"""Which layers find their ranges as the model runs: made-up judges, and a model whose samples differ in range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from qtool.search.dynamic_choice import better_dynamic
from qtool.search.node_groups import NodeGroup
from qtool.search.sensitivity import LayerNoise

_NODES = ("a", "b", "c", "d", "relu")


def _layer(name: str, sqnr_db: float, share: float) -> LayerNoise:
    return LayerNoise(group=NodeGroup(layer=name, operator="MatMul", nodes=(name,)), sqnr_db=sqnr_db, share=share)


def _better(
    ranked: Sequence[LayerNoise],
    alone: Mapping[str, float],
    *,
    eligible: Sequence[str] = _NODES,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[tuple[LayerNoise, ...], list[str]]:
    """Returns what is found where dynamic layers reach ``alone``, in dB, and the layers that were measured."""
    measured: list[str] = []

    def quantize(dynamic: Sequence[str]) -> Any:
        def candidate(kept_float: Mapping[str, str]) -> Any:
            (name,) = dynamic
            assert set(kept_float) == set(_NODES) - {name}
            measured.append(name)
            return SimpleNamespace(model=name)

        return candidate

    evaluator = SimpleNamespace(sqnr_db=lambda name: alone[name])
    found = better_dynamic(quantize, ranked, _NODES, eligible, evaluator, advance=lambda _: None, stop=stop)
    return found, measured


def test_exactly_the_layers_that_are_better_by_more_than_a_decibel_are_chosen() -> None:
    ranked = [_layer("a", 10.0, 0.5), _layer("b", 15.0, 0.3), _layer("c", 20.0, 0.1), _layer("d", 20.0, 0.1)]
    found, measured = _better(ranked, {"a": 20.0, "b": 16.0, "c": 21.1, "d": 5.0})
    assert measured == ["a", "b", "c", "d"]
    assert [(layer.group.layer, layer.sqnr_db) for layer in found] == [("a", 20.0), ("c", 21.1)]
    # Ten decibels less noise are a tenth of it.
    assert [layer.share for layer in found] == pytest.approx([0.05, 0.1 * 10**-0.11])


def test_only_layers_that_can_be_dynamic_and_do_matter_are_measured() -> None:
    ranked = [_layer("a", 10.0, 0.9), _layer("b", 20.0, 0.09), _layer("c", 40.0, 0.0029), _layer("d", math.inf, 0.01)]
    found, measured = _better(ranked, dict.fromkeys(_NODES, 90.0), eligible=("b", "c", "d"))
    assert measured == ["b"]
    assert [layer.group.layer for layer in found] == ["b"]


def test_the_end_of_the_time_leaves_what_was_found_so_far() -> None:
    ranked = [_layer(name, 10.0, 0.25) for name in "abcd"]
    asked: list[bool] = []

    def after_two() -> bool:
        asked.append(True)
        return len(asked) > 2

    found, measured = _better(ranked, dict.fromkeys(_NODES, 30.0), stop=after_two)
    assert measured == ["a", "b"]
    assert [layer.group.layer for layer in found] == ["a", "b"]


_TOKENS = """
g (float[n,6,16] x) => (float[n,6,8] y)
{
    m = MatMul (x, w)
    l = LayerNormalization <axis = -1> (m, one)
    t = Tanh (l)
    y = MatMul (t, v)
}
"""


_ONE_LAYER = """
g (float[n,6,16] x) => (float[n,6,16] y)
{
    m = MatMul (x, w)
    y = LayerNormalization <axis = -1> (m, one)
}
"""
_SIDE_BY_SIDE = """
g (float[n,6,16] x) => (float[n,6,16] y)
{
    m = MatMul (x, w)
    l = LayerNormalization <axis = -1> (m, one)
    o = MatMul (x, u)
    p = LayerNormalization <axis = -1> (o, one)
    y = Add (l, p)
}
"""
_UNLIKE_PRODUCTS = """
g (float[n,6,16] x) => (float[n,6,6] y)
{
    turned = Transpose <perm = [0, 2, 1]> (x)
    y = MatMul (x, turned)
}
"""


def _tokens(path: Path, *, spread: float, text: str = _TOKENS) -> Path:
    """Writes a model that scales every token to the same length, and data whose samples differ by up to ``spread``."""
    generator = np.random.default_rng(4)
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    arrays = {
        "w": generator.normal(0, 1, (16, 16)).astype(np.float32),
        "one": np.ones(16, np.float32),
        "v": generator.normal(0, 1, (16, 8)).astype(np.float32),
        "u": generator.normal(0, 1, (16, 16)).astype(np.float32),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}"
    onnx.save(proto, path / "tokens.onnx")
    lengths = np.geomspace(1, spread, 24)[generator.permutation(24), None, None]
    np.savez(path / "tokens.npz", x=(generator.normal(0, 1, (24, 6, 16)) * lengths).astype(np.float32))
    return path / "tokens.onnx"


def _sqnr_db(one: Path, other: Path, data: Path) -> float:
    """Returns the SQNR of ``other`` beside ``one`` over all samples, one at a time, in dB."""
    sessions = [ort.InferenceSession(str(path)) for path in (one, other)]
    with np.load(data) as arrays:
        runs = [[session.run(None, {"x": row[None]})[0] for row in arrays["x"]] for session in sessions]
    expected, given = (np.stack(run).astype(np.float64) for run in runs)
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - given).sum()))


def _quantized(run: Callable[..., Any], model: Path, name: str, *options: str) -> Any:
    data = model.with_suffix(".npz")
    result = run("quantize", model, "--calib-data", data, "--batch-size", "1", "-o", name, "--json", *options)
    assert result.code == 0, result.err
    return result.json


def test_the_layer_whose_samples_differ_in_range_is_dynamic_and_the_one_behind_it_is_not(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    model = _tokens(tmp_path, spread=300.0)
    plain = _quantized(run, model, "fixed.onnx", "--max-float", "0")
    found = _quantized(run, model, "q.onnx")
    assert plain["dynamic_nodes"] == []
    assert found["kept_float"]["dynamic_layers"] == ["/m"]
    assert found["kept_float"]["layers"] == []
    assert found["dynamic_nodes"] == ["/m"]
    operators = {node.name: node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}
    assert list(operators.values()).count("DynamicQuantizeLinear") == 1
    assert list(operators.values()).count("MatMulInteger") == 1
    fixed = _sqnr_db(model, tmp_path / "fixed.onnx", tmp_path / "tokens.npz")
    mended = _sqnr_db(model, tmp_path / "q.onnx", tmp_path / "tokens.npz")
    assert mended > 30
    assert mended > fixed + 10
    assert found["kept_float"]["sqnr_db"] > found["kept_float"]["integers_everywhere_sqnr_db"] + 10
    _quantized(run, model, "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "q.onnx").read_bytes()


def test_samples_of_one_range_leave_every_layer_with_fixed_ranges(run: Callable[..., Any], tmp_path: Path) -> None:
    found = _quantized(run, _tokens(tmp_path, spread=1.0), "q.onnx")
    assert found["kept_float"]["dynamic_layers"] == []
    assert found["dynamic_nodes"] == []


@pytest.mark.parametrize(("text", "layers"), [(_ONE_LAYER, ["/m"]), (_SIDE_BY_SIDE, ["/m", "/o"])])
def test_all_layers_may_be_dynamic(run: Callable[..., Any], tmp_path: Path, text: str, layers: list[str]) -> None:
    model = _tokens(tmp_path, spread=1000.0, text=text)
    _quantized(run, model, "fixed.onnx", "--max-float", "0")
    found = _quantized(run, model, "q.onnx")
    assert sorted(found["dynamic_nodes"]) == layers
    assert _sqnr_db(model, tmp_path / "q.onnx", tmp_path / "tokens.npz") > 30
    assert _sqnr_db(model, tmp_path / "fixed.onnx", tmp_path / "tokens.npz") < 20


def test_products_that_cannot_be_dynamic_end_no_search(run: Callable[..., Any], tmp_path: Path) -> None:
    model = _tokens(tmp_path, spread=300.0, text=_UNLIKE_PRODUCTS)
    assert _quantized(run, model, "q.onnx")["dynamic_nodes"] == []
