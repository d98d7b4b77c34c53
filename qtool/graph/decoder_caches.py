"""Finds the caches of a decoder among its inputs and outputs, and the length of heads that they leave open."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

# How exporters name what a step hands to the next: transformers and onnxruntime-genai, then others.
_RENAMED = (("past_key_values", "present"), ("past_key_values", "present_key_values"), ("past", "present"))
# Operators that keep the last axis of their first input.
_KEEPING_LAST = frozenset({"Add", "Cast", "Identity", "QuantizeLinear", "DequantizeLinear"})
_PAST_PLACES = (3, 4)


def filled_by(past: str, outputs: Iterable[str]) -> str | None:
    """Returns the output that fills the cache ``past`` for the next step, by their names; None where there is none."""
    names = set(outputs)
    found = (past.replace(old, new, 1) for old, new in _RENAMED if old in past)
    return next((name for name in found if name in names), None)


def cache_outputs(model: ir.Model) -> frozenset[str]:
    """Returns the outputs that are caches for the next step: what they hold, the other outputs already show."""
    outputs = [value.name or "" for value in model.graph.outputs]
    found = {filled_by(value.name or "", outputs) for value in model.graph.inputs}
    return frozenset(name for name in found if name is not None)


def head_sizes(model: ir.Model) -> dict[str, int]:
    """Returns the length of heads by input, for the inputs that hold a cache and are open in their last axis."""
    found = {value.name or "": head_size(value) for value in model.graph.inputs}
    return {name: size for name, size in found.items() if size is not None}


def head_size(value: ir.Value) -> int | None:
    """Returns the length of a head in the cache ``value``, (batch, kv_heads, positions, length); None where unknown.

    The graph is free to leave it open, and it follows from the width of keys over the number of heads, as
    com.microsoft.GroupQueryAttention defines them
    (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
    """
    if value.shape is None or len(value.shape) != len(("batch", "heads", "positions", "length")):
        return None
    if isinstance(value.shape[3], int):
        return None
    for node, place in value.uses():
        if node.domain == "com.microsoft" and node.op_type == "GroupQueryAttention" and place in _PAST_PLACES:
            return _head_size(node)
    return None


def _head_size(node: ir.Node) -> int | None:
    heads, kv_heads = (node.attributes.get_int(name, 0) for name in ("num_heads", "kv_num_heads"))
    # Without keys, they stand behind the queries, and the values behind them.
    source, count = (node.inputs[0], heads + 2 * kv_heads) if node.inputs[1] is None else (node.inputs[1], kv_heads)
    width = None if source is None else _width(source)
    return None if not count or width is None or width % count else width // count


def _width(value: ir.Value) -> int | None:
    """Returns the length of the last axis, which a projection gives."""
    current: ir.Value | None = value
    seen = set()
    while current is not None and current not in seen:
        seen.add(current)
        if current.shape is not None and len(current.shape) and isinstance(current.shape[-1], int):
            return current.shape[-1]
        node = current.producer()
        if node is None:
            return None
        if node.op_type == "MatMulNBits":
            return node.attributes.get_int("N", 0) or None
        if node.op_type == "MatMul" and len(node.inputs) > 1:
            current = node.inputs[1]
        elif node.op_type in _KEEPING_LAST and node.inputs:
            current = node.inputs[0]
        else:
            return None
    return None
