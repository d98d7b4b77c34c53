"""Data is compared on in the batches that a graph takes, whatever those are."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

Values: TypeAlias = dict[str, np.ndarray]
RANDOM = np.random.default_rng(0)
OPTIONS = [("--fp16",), ("--bf16",), ("--opset", "19")]


def save(nodes: Sequence[NodeProto], inputs: dict[str, list[Any]], output: list[Any], weights: Values) -> None:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), "m.onnx")


def store(**arrays: np.ndarray) -> None:
    np.savez("d.npz", **{name: value.astype(np.float32) for name, value in arrays.items()})


def one_layer(batch: int) -> None:
    save(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": [batch, 4]},
        [batch, 3],
        {"w": RANDOM.normal(size=(4, 3))},
    )
    store(x=RANDOM.normal(size=(20, 4)))


def several_batch_axes() -> None:
    """A matrix of keys that every sample looks into, and a temperature."""
    nodes = [
        helper.make_node("Transpose", ["keys"], ["k"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "k"], ["s"]),
        helper.make_node("Mul", ["s", "t"], ["m"]),
        helper.make_node("Softmax", ["m"], ["y"], axis=-1),
    ]
    save(nodes, {"x": ["batch", 4], "keys": [6, 4], "t": []}, ["batch", 6], {})
    store(x=RANDOM.normal(size=(9, 4)), keys=RANDOM.normal(size=(9, 6, 4)), t=RANDOM.normal(size=9))


def lengths_that_depend() -> None:
    """One row more in one input than in the other."""
    nodes = [
        helper.make_node("MatMul", ["a", "w"], ["h"]),
        helper.make_node("Slice", ["b", "one", "end", "zero"], ["c"]),
        helper.make_node("Add", ["h", "c"], ["y"]),
    ]
    save(nodes, {"a": ["n", 3], "b": ["m", 3]}, ["n", 3], {"w": RANDOM.normal(size=(3, 3))})
    model = onnx.load("m.onnx")
    for name, value in (("zero", 0), ("one", 1), ("end", 1 << 40)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    onnx.save(model, "m.onnx")
    store(a=RANDOM.normal(size=(8, 5, 3)), b=RANDOM.normal(size=(8, 6, 3)))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_kept(run: Any, folder: Path, batch: int, option: tuple[str, ...]) -> None:
    one_layer(batch)
    report = _converted(run, *option)
    assert [one["data"] for one in report["comparisons"]] == ["real"]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("model", [several_batch_axes, lengths_that_depend])
def test_inputs_without_a_common_batch_axis_are_fed_whole(
    run: Any, folder: Path, model: Callable[[], None], option: tuple[str, ...]
) -> None:
    model()
    report = _converted(run, *option)
    assert {one["data"] for one in report["comparisons"]} == {"real"}


def _converted(run: Any, *option: str) -> Any:
    result = run("m.onnx", *option, "--calib-data", "d.npz", "-o", "c.onnx", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert max(one["relative"] for one in _outputs(report)) < (0.15 if option == ("--bf16",) else 2e-2)
    return report


def _outputs(report: Any) -> list[Any]:
    return [output for one in report["comparisons"] for output in one["outputs"]]
