"""Operators in torch give what ONNX says, and gradients that finite differences confirm."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch

from qtool.errors import RuntimeRefusedError
from qtool.learn.differentiable_graph import DifferentiableGraph
from qtool.learn.operators.registry import OPERATORS
from tests.learn.node_cases import NodeCase, node_cases

# Random numbers, and values that are computed to other precisions on purpose.
_LEFT_OUT = {"Dropout", "Cast", "CastLike", "DequantizeLinear", "QuantizeLinear"}
# What steps or jumps: its gradient is no limit of differences, or nobody reads it.
_STEPS = {"Ceil", "Floor", "Range", "Round", "Sign", "Mod", "TopK"}
# Others of their inputs are settings.
_ONE_LEARNED = {"Pad", "Resize"}
_ASIDE = 0.0371
_MANY = 200


@pytest.mark.parametrize("case", node_cases(), ids=lambda case: case.name)
def test_operators_give_what_onnx_says(case: NodeCase) -> None:
    if case.operator in _LEFT_OUT:
        pytest.skip("compared with onnxruntime in other tests")
    model, names = ir.from_proto(case.model), [value.name for value in case.model.graph.input]
    graph = DifferentiableGraph(model)
    feed = {name: torch.from_numpy(np.array(array)) for name, array in zip(names, case.inputs, strict=True)}
    outputs = [value.name for value in case.model.graph.output]
    try:
        found = graph.run(feed, outputs, {})
    except RuntimeRefusedError as error:
        pytest.skip(f"torch does not compute it, and onnxruntime neither: {error.problem[:60]}")
    if graph.foreign:
        pytest.skip("runs in onnxruntime in this form")
    for name, wanted in zip(outputs, case.outputs, strict=True):
        given = found[name].numpy()
        assert given.shape == wanted.shape
        np.testing.assert_allclose(given, wanted, rtol=1e-3, atol=1e-5)


def _floats(case: NodeCase) -> list[npt.NDArray[Any]]:
    return [array for array in case.inputs if array.dtype.kind == "f"]


def _smallest_cases() -> list[NodeCase]:
    """Returns for each operator the case with the fewest numbers whose gradient can be measured."""
    best: dict[str, tuple[int, NodeCase]] = {}
    for case in node_cases():
        numbers = [array.size for array in _floats(case)]
        given = [array for array in case.outputs if array.dtype.kind == "f" and array.size]
        if not numbers or not given or 0 in numbers or case.operator in _STEPS | _LEFT_OUT:
            continue
        entry = (sum(numbers), case)
        best[case.operator] = min(best.get(case.operator, entry), entry, key=lambda pair: pair[0])
    return [case for _, case in best.values()]


@pytest.mark.parametrize("case", _smallest_cases(), ids=lambda case: case.operator)
def test_gradients_are_those_of_finite_differences(case: NodeCase) -> None:
    model, names = ir.from_proto(case.model), [value.name for value in case.model.graph.input]
    graph = DifferentiableGraph(model)
    output = next(
        value.name
        for value, array in zip(case.model.graph.output, case.outputs, strict=True)
        if array.dtype.kind == "f"
    )
    feed = {name: torch.from_numpy(np.array(array)) for name, array in zip(names, case.inputs, strict=True)}
    floats = [name for name, value in feed.items() if value.dtype.is_floating_point]
    learned = floats[:1] if case.operator in _ONE_LEARNED else floats

    def run(*values: torch.Tensor) -> torch.Tensor:
        return graph.run({**feed, **dict(zip(learned, values, strict=True))}, [output], {})[output]

    for name in floats:
        feed[name] = feed[name].double()
    # A little aside, where no corner is.
    values = [(feed[name] + _ASIDE).requires_grad_() for name in learned]
    with suppress(RuntimeRefusedError):
        run(*values)
    if graph.foreign:
        pytest.skip("runs in onnxruntime in this form")
    # Of many numbers, random directions are measured.
    many = sum(value.numel() for value in values) > _MANY
    assert torch.autograd.gradcheck(run, values, eps=1e-6, atol=1e-4, rtol=1e-3, fast_mode=many)


def test_most_operators_have_cases() -> None:
    covered = {case.operator for case in node_cases()}
    own = {name for name in OPERATORS if "." not in name}
    assert len(covered & own) > 0.9 * len(own)
