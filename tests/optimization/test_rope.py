"""Rotary embeddings: recognized in both layouts, and spelled out again for runtimes without an operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qtool.passes.optimization.choice import chosen_passes, operators_for
from qtool.passes.optimization.pipeline import node_counts, run_passes
from qtool.progress import Silent

Graph = Callable[..., onnx.ModelProto]
_ROPE = "RotaryEmbedding"


def _optimized(model: onnx.ModelProto, target: str | None = None, *passes: str) -> tuple[onnx.ModelProto, Counter[str]]:
    graph = ir.from_proto(model)
    run_passes(graph, chosen_passes(passes, (), target), operators_for(target), Silent())
    return ir.to_proto(graph), node_counts(graph)


def _assert_same(outputs: Any, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for (name, expected), found in zip(outputs(before).items(), outputs(after).values(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize(
    ("name", "target", "operator", "count"),
    [
        ("rope-half-rotated", None, _ROPE, 2),
        ("rope-interleaved", None, _ROPE, 3),
        ("rope-interleaved-opset-17", "x86", f"com.microsoft.{_ROPE}", 3),
    ],
)
def test_both_layouts_are_recognized(
    graph: Graph, outputs: Any, name: str, target: str | None, operator: str, count: int
) -> None:
    model = graph(name)
    after, counts = _optimized(model, target)
    assert counts[operator] == count
    assert not {"Neg", "Sub", "Add", "Mul"} & set(counts)
    _assert_same(outputs, model, after)


def test_the_layout_is_told_apart(graph: Graph) -> None:
    for name, interleaved in (("rope-half-rotated", 0), ("rope-interleaved", 1)):
        after, _ = _optimized(graph(name))
        ropes = [node for node in after.graph.node if node.op_type == _ROPE]
        assert {attribute.i for node in ropes for attribute in node.attribute} == {interleaved}


def test_tables_are_made_once_for_all_that_share_them(graph: Graph) -> None:
    after, _ = _optimized(graph("rope-half-rotated"))
    tables = {node.input[place] for node in after.graph.node if node.op_type == _ROPE for place in (1, 2)}
    assert len(tables) == 2


@pytest.mark.parametrize(("name", "target"), [("rope-half-rotated", "tensorrt"), ("rope-interleaved-opset-17", None)])
def test_without_the_operator_it_stays_spelled_out(graph: Graph, name: str, target: str | None) -> None:
    _, counts = _optimized(graph(name), target)
    assert not [operator for operator in counts if operator.endswith(_ROPE)]


@pytest.mark.parametrize("target", ["tensorrt", "openvino", "qnn", None])
def test_the_operator_is_spelled_out_for_those_who_lack_it(graph: Graph, outputs: Any, target: str | None) -> None:
    model = graph("rope-operators")
    named = () if target else ("default", "decompose-rope")
    after, counts = _optimized(model, target, *named)
    assert not [operator for operator in counts if operator.endswith(_ROPE)]
    assert {"Slice", "Mul", "Add", "Concat"} <= set(counts)
    _assert_same(outputs, model, after)


def test_what_was_spelled_out_is_recognized_again(graph: Graph, outputs: Any) -> None:
    model = graph("rope-operators")
    del model.graph.node[1:]
    del model.graph.output[1:]
    spelled, _ = _optimized(model, "tensorrt")
    again, counts = _optimized(spelled)
    assert counts[_ROPE] == 1
    assert "Mul" not in counts
    _assert_same(outputs, model, again)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # The wrong half is turned around, the sign is another one, or the tables are not the same in both halves.
        ("Concat <axis = -1> (q_minus, q_low)", "Concat <axis = -1> (q_low, q_minus)"),
        ("q_minus = Neg (q_high)", "q_minus = Sin (q_high)"),
        (
            "both = Concat <axis = -1> (angles, angles)",
            "twice = Add (angles, angles) both = Concat <axis = -1> (angles, twice)",
        ),
    ],
)
def test_what_is_no_rotary_embedding_stays(graph: Graph, outputs: Any, old: str, new: str) -> None:
    model = graph("rope-half-rotated", old, new)
    after, counts = _optimized(model)
    assert counts[_ROPE] < 2
    _assert_same(outputs, model, after)
