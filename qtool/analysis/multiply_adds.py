"""Counts the multiplications with addition of one node, from shapes.

Sources: the definitions of the operators, https://onnx.ai/onnx/operators/ and
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

from qtool.graph.unpacked_product import PACKED_DOMAIN, PACKED_DOMAINS

Shape: TypeAlias = tuple[int, ...]
# Tells the shape of a value; None where it is unknown.
ShapeOf: TypeAlias = Callable[[ir.Value | None], Shape | None]
_Count: TypeAlias = Callable[[ir.Node, ShapeOf], int | None]


def multiplies(node: ir.Node) -> bool:
    """Returns whether the work of a node is counted in multiply-adds."""
    return (node.domain, node.op_type) in _COUNTS


def multiply_adds(node: ir.Node, shape_of: ShapeOf) -> int | None:
    """Returns the multiply-adds of a node that ``multiplies``; None where shapes that it depends on are unknown."""
    return _COUNTS[node.domain, node.op_type](node, shape_of)


def _convolution(weights: int) -> _Count:
    """Every output value sums one product for each weight of its channel: N·M·out · C/group·k."""

    def count(node: ir.Node, shape_of: ShapeOf) -> int | None:
        out, kernel = shape_of(node.outputs[0]), shape_of(_input(node, weights))
        return None if out is None or kernel is None else math.prod(out) * math.prod(kernel[1:])

    return count


def _transposed_convolution(node: ir.Node, shape_of: ShapeOf) -> int | None:
    """Every input value is multiplied with each weight of its channel: N·C·in · M/group·k."""
    source, kernel = shape_of(_input(node, 0)), shape_of(_input(node, 1))
    return None if source is None or kernel is None else math.prod(source) * math.prod(kernel[1:])


def _product(node: ir.Node, shape_of: ShapeOf) -> int | None:
    """Every value of a product of matrices sums over the columns of the left one: M·N · K, for each of a batch."""
    out, left = shape_of(node.outputs[0]), shape_of(_input(node, 0))
    if out is None or not left:
        return None
    transposed = _integer(node, "transA", 0) and len(left) > 1
    return math.prod(out) * (left[-2] if transposed else left[-1])


def _packed_product(node: ir.Node, shape_of: ShapeOf) -> int | None:
    """As a product of matrices, whose length K is an attribute: the weights are packed."""
    out = shape_of(node.outputs[0])
    return None if out is None or "K" not in node.attributes else math.prod(out) * _integer(node, "K", 0)


def _recurrent(node: ir.Node, shape_of: ShapeOf) -> int | None:
    """At every step, each sample meets each weight of W and of R once: T·B · (|W| + |R|)."""
    source, own, recurrent = (shape_of(_input(node, position)) for position in range(3))
    if source is None or own is None or recurrent is None:
        return None
    return source[0] * source[1] * (math.prod(own) + math.prod(recurrent))


def _einsum(node: ir.Node, shape_of: ShapeOf) -> int | None:
    """Two factors meet once for every combination of all letters; other numbers of factors are not counted."""
    equation = node.attributes["equation"].as_string().replace(" ", "").partition("->")[0]
    terms = equation.split(",")
    shapes = [shape_of(value) for value in node.inputs]
    lengths: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=False):
        if shape is None or len(terms) != 2:
            return None
        letters = _letters(term, len(shape))
        for letter, length in zip(letters, shape, strict=True):
            lengths[letter] = max(lengths.get(letter, 1), length)
    return math.prod(lengths.values())


def _letters(term: str, rank: int) -> list[str]:
    """Returns one letter an axis; those that ``...`` stands for are numbered from the end."""
    before, dots, after = term.partition("...")
    spread = rank - len(before) - len(after) if dots else 0
    return [*before, *(str(axis) for axis in range(spread, 0, -1)), *after]


def _attention(node: ir.Node, shape_of: ShapeOf) -> int | None:
    """Each query meets each key, and each row of weights each value: B·H·Sq·Sk · (D + Dv)."""
    query, key, value = (shape_of(_input(node, position)) for position in range(3))
    past = shape_of(_input(node, 4)) if _input(node, 4) is not None else (0, 0, 0)
    if query is None or key is None or value is None or past is None:
        return None
    keys = key[-2] + past[2]
    if len(query) == 4:
        batch, heads, queries, size = query
        return batch * heads * queries * keys * (size + value[-1])
    query_heads, value_heads = _integer(node, "q_num_heads", 0), _integer(node, "kv_num_heads", 0)
    if not query_heads or not value_heads:
        return None
    batch, queries, hidden = query
    return batch * queries * keys * (hidden + query_heads * value[-1] // value_heads)


def _multi_head_attention(node: ir.Node, shape_of: ShapeOf) -> int | None:
    """The two products of attention, on hidden sizes that hold all heads: B·Sq·Sk · (D + Dv); only unpacked inputs."""
    query, key, value = (shape_of(_input(node, position)) for position in range(3))
    if query is None or key is None or value is None or not len(query) == len(key) == len(value) == 3:
        return None
    # A cache holds batch, heads, steps and head size.
    past = shape_of(_input(node, 6)) if _input(node, 6) is not None else (0, 0, 0)
    return None if past is None else query[0] * query[1] * (key[1] + past[2]) * (query[2] + value[2])


def _attention_with_weights(node: ir.Node, shape_of: ShapeOf) -> int | None:
    """One product makes queries, keys and values; then come the two of attention: B·S·D·|3H| + B·S·S·2H."""
    source, weights = shape_of(_input(node, 0)), shape_of(_input(node, 1))
    if source is None or weights is None or _input(node, 4) is not None or "qkv_hidden_sizes" in node.attributes:
        return None
    batch, steps, size = source
    return batch * steps * size * weights[1] + batch * steps * steps * 2 * (weights[1] // 3)


def _input(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if position < len(node.inputs) else None


def _integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _table(domain: str, rows: Sequence[tuple[str, _Count]]) -> dict[tuple[str, str], _Count]:
    return {(domain, operator): count for operator, count in rows}


_COUNTS: Mapping[tuple[str, str], _Count] = {
    **_table(
        "",
        [
            ("Conv", _convolution(1)),
            ("ConvInteger", _convolution(1)),
            ("DeformConv", _convolution(1)),
            ("QLinearConv", _convolution(3)),
            ("ConvTranspose", _transposed_convolution),
            ("Gemm", _product),
            ("MatMul", _product),
            ("MatMulInteger", _product),
            ("QLinearMatMul", _product),
            ("RNN", _recurrent),
            ("GRU", _recurrent),
            ("LSTM", _recurrent),
            ("Einsum", _einsum),
            ("Attention", _attention),
        ],
    ),
    **{(domain, "MatMulNBits"): _packed_product for domain in PACKED_DOMAINS},
    **_table(
        PACKED_DOMAIN,
        [
            ("FusedConv", _convolution(1)),
            ("FusedGemm", _product),
            ("FusedMatMul", _product),
            ("QGemm", _product),
            ("QLinearConv", _convolution(3)),
            ("MatMulIntegerToFloat", _product),
            ("DynamicQuantizeMatMul", _product),
            ("Attention", _attention_with_weights),
            ("MultiHeadAttention", _multi_head_attention),
        ],
    ),
}
