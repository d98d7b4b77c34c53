"""Every pass of `qtool optimize` keeps what a model computes, and has nothing left to do the second time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qtool.passes.optimization.choice import operators_for, usual_passes
from qtool.passes.optimization.operators import Operators
from qtool.passes.optimization.pipeline import run_passes
from qtool.passes.registry import PASSES
from qtool.progress import Silent

_EVERY_OPERATOR = Operators(onnxruntime=True)
_TOLERANCE, _HALF_TOLERANCE = 1e-5, 1e-2


def _apply(
    model: onnx.ModelProto, *names: str, rounds: int = 6, operators: Operators = _EVERY_OPERATOR
) -> tuple[onnx.ModelProto, tuple[Any, ...]]:
    graph = ir.from_proto(model)
    steps = run_passes(graph, names, operators, Silent(), rounds=rounds)
    return ir.to_proto(graph), steps


def _assert_same_outputs(outputs: Any, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    expected, got = outputs(before), outputs(after)
    # Values that are rounded to half precision on the way move as a whole where another order rounds otherwise.
    half = any(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for value in before.graph.input)
    assert list(got) == list(expected)
    for name, values in expected.items():
        assert got[name].dtype == values.dtype
        assert got[name].shape == values.shape
        share = 0.0 if values.dtype.kind != "f" else _HALF_TOLERANCE if half else _TOLERANCE
        bound = share * max(1e-30, np.abs(values).max(initial=0))
        np.testing.assert_allclose(got[name], values, rtol=0, atol=bound, err_msg=name)


def _interface(model: onnx.ModelProto) -> Any:
    stored = {initializer.name for initializer in model.graph.initializer} if model.ir_version < 4 else set()
    inputs = [(value.name, str(value.type)) for value in model.graph.input if value.name not in stored]
    return inputs, [(value.name, str(value.type)) for value in model.graph.output]


def test_each_pass_keeps_outputs_and_interface_and_is_done_after_one_run(model: onnx.ModelProto, outputs: Any) -> None:
    ready, _ = _apply(model, "lift-constants", "infer-shapes", rounds=1)
    for name in PASSES:
        once, _ = _apply(ready, name, rounds=1)
        assert _interface(once) == _interface(model), name
        if once != ready:
            _assert_same_outputs(outputs, model, once)
            onnx.checker.check_model(once)
        twice, steps = _apply(once, name, rounds=1)
        assert twice == once, name
        assert not steps, name


@pytest.mark.parametrize("target", [None, "x86", "tensorrt"])
def test_the_pipeline_keeps_outputs_and_interface_and_is_done_after_one_run(
    model: onnx.ModelProto, outputs: Any, target: str | None
) -> None:
    once, _ = _apply(model, *usual_passes(target), operators=operators_for(target))
    _assert_same_outputs(outputs, model, once)
    assert _interface(once) == _interface(model)
    onnx.checker.check_model(once, full_check=True)
    twice, steps = _apply(once, *usual_passes(target), operators=operators_for(target))
    assert not [step for step in steps if step.operators]
    assert twice == once


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_says_what_it_does(name: str) -> None:
    assert PASSES[name].effect
    assert not PASSES[name].effect.endswith(".")
