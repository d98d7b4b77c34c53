"""What exporters spell out becomes one operator, where the opset or the target has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import onnx
import onnx_ir as ir
import pytest

from qtool.passes.optimization.choice import chosen_passes, operators_for, usual_passes
from qtool.passes.optimization.operators import Operators
from qtool.passes.optimization.pipeline import node_counts, run_passes
from qtool.progress import Silent

Graph = Callable[[str], onnx.ModelProto]


def _optimized(model: onnx.ModelProto, target: str | None = None) -> Counter[str]:
    graph = ir.from_proto(model)
    run_passes(graph, usual_passes(target), Operators(onnxruntime=target == "x86"), Silent())
    return node_counts(graph)


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("gelu-forms", None, {"Gelu": 4, "Mul": 2, "Sigmoid": 1}),
        ("gelu-forms", "x86", {"Gelu": 4, "com.microsoft.QuickGelu": 1}),
        (
            "gelu-forms-opset-17",
            "x86",
            {"com.microsoft.Gelu": 2, "com.microsoft.FastGelu": 2, "com.microsoft.QuickGelu": 1},
        ),
        ("swish-forms", None, {"Swish": 2, "HardSwish": 3, "MatMul": 2, "Mul": 2, "HardSigmoid": 1}),
        ("normalizations", None, {"LayerNormalization": 2, "RMSNormalization": 2, "ReduceMean": 2}),
        # The last one returns its weights as well.
        ("attention", None, {"Attention": 3, "Softmax": 1, "MatMul": 2, "Transpose": 1}),
        ("normalizations-opset-18", None, {"LayerNormalization": 2, "ReduceMean": 4}),
    ],
)
def test_what_is_spelled_out_is_recognized(
    graph: Graph, name: str, target: str | None, expected: Mapping[str, int]
) -> None:
    counts = _optimized(graph(name), target)
    assert {operator: counts[operator] for operator in expected} == expected


def test_what_has_no_integer_kernel_is_spelled_out_on_request(graph: Graph) -> None:
    model = ir.from_proto(graph("hard-swish-between-layers"))
    run_passes(model, chosen_passes(("default", "integers"), (), None), operators_for(None), Silent())
    counts = node_counts(model)
    assert not {"HardSwish", "PRelu", "ReduceMean"} & set(counts)
    assert {"Clip", "LeakyRelu", "GlobalAveragePool"} <= set(counts)


@pytest.mark.parametrize("name", ["gelu-forms-opset-17", "swish-forms-opset-13"])
def test_without_opset_and_target_nothing_but_the_standard_is_used(graph: Graph, name: str) -> None:
    assert not {"Gelu", "Swish"} & set(_optimized(graph(name)))
    assert not [operator for operator in _optimized(graph(name)) if "." in operator]
