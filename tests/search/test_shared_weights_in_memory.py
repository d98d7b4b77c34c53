"""Weights that lie crookedly in their file are copied once for all sessions of a search, and not for ever."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qtool.formats.onnx.map_types import load_model
from qtool.runtime import shared_initializers
from qtool.runtime.graphs import open_graph
from qtool.runtime.shared_initializers import ready

_SIDE = 160


def _crooked() -> ir.Tensor:
    """Returns a tensor whose numbers begin between two places that onnxruntime reads from."""
    stored = np.zeros(_SIDE * _SIDE * 4 + 20, np.uint8)
    first = -stored.ctypes.data % 16 + 4
    array = stored[first : first + _SIDE * _SIDE * 4].view(np.float32).reshape(_SIDE, _SIDE)
    array[:] = np.random.default_rng(0).standard_normal(array.shape)
    return ir.Tensor(array, name="w")


def test_a_copy_is_kept_as_long_as_its_tensor() -> None:
    tensor = _crooked()
    assert ready(tensor) is not ready(tensor)
    kept = ready(tensor, keeps=True)
    assert kept.ctypes.data % 16 == 0
    assert ready(tensor, keeps=True) is kept
    np.testing.assert_array_equal(kept, tensor.numpy())
    assert any(array is kept for array in shared_initializers._KEPT.values())
    del tensor
    gc.collect()
    assert not any(array is kept for array in shared_initializers._KEPT.values())


def test_few_bytes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [_crooked() for _ in range(3)]
    held = sum(array.nbytes for array in shared_initializers._KEPT.values())
    monkeypatch.setattr(shared_initializers, "_MOST_KEPT_BYTES", held + 2 * tensors[0].nbytes)
    kept = [ready(tensor, keeps=True) for tensor in tensors]
    assert [ready(tensor, keeps=True) is array for tensor, array in zip(tensors, kept, strict=True)] == [
        True,
        True,
        False,
    ]


def test_what_lies_straight_is_read_where_it_is() -> None:
    array = np.ones((_SIDE, _SIDE), np.float32)
    assert ready(ir.Tensor(array, name="w"), keeps=True) is array


def test_sessions_compute_the_same_with_a_kept_copy(save: Callable[..., Path]) -> None:
    tensor = _crooked()
    path = save(
        "net.onnx", f"net (float[n,{_SIDE}] x) => (float[n,{_SIDE}] y) {{ y = MatMul (x, w) }}", w=tensor.numpy()
    )
    model = load_model(path)
    model.graph.initializers["w"].const_value = tensor
    x = np.random.default_rng(1).standard_normal((3, _SIDE)).astype(np.float32)
    for _ in range(2):
        with open_graph(model) as session:
            np.testing.assert_allclose(session.run({"x": x})["y"], x @ tensor.numpy(), rtol=1e-4, atol=1e-4)
    assert tensor in shared_initializers._KEPT
