"""Keeps the names of the symbolic dimensions of a model's outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

# The names that shape inference generates for unknown dimensions; only their equality has a meaning.
MADE_UP = re.compile(r"unk__\d+|.*#\d+")


@contextmanager
def declared_lengths(model: ir.Model) -> Iterator[None]:
    """Restores the names of symbolic output dimensions after the block, unless they have become fixed.

    A tensor that replaces an output has the names that shape inference generated.
    """
    before = [_lengths(value) for value in model.graph.outputs]
    yield
    for value, declared in zip(model.graph.outputs, before, strict=True):
        found = _lengths(value)
        if declared is None or (found is not None and len(found) != len(declared)):
            continue
        value.shape = ir.Shape([_kept(*pair) for pair in zip(declared, found or declared, strict=True)])


def _lengths(value: ir.Value) -> list[int | str | None] | None:
    if value.shape is None:
        return None
    return [length if isinstance(length, int) else length.value for length in value.shape]


def _kept(declared: int | str | None, found: int | str | None) -> int | str | None:
    if isinstance(found, int) or (declared is None and found is not None and not MADE_UP.fullmatch(found)):
        return found
    return declared
