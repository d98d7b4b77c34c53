"""``qtool diff``: what changed between two models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture
def edited(model: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """Writes the network with a change in it."""

    def write(edit: Edit) -> Path:
        proto = onnx.load(model)
        edit(proto)
        onnx.save(proto, tmp_path / "other.onnx")
        return tmp_path / "other.onnx"

    return write


def _changes(outcome: Any, kind: str) -> list[Any]:
    assert outcome.code == 1, outcome.err
    return [change for change in outcome.json["changes"] if change["kind"] == kind]


def _tensor(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(entry for entry in proto.graph.initializer if entry.name == name)


def _set(proto: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    _tensor(proto, name).CopyFrom(numpy_helper.from_array(array, name))


def _only_metadata(proto: onnx.ModelProto) -> None:
    proto.producer_name = "someone else"
    proto.doc_string = "changed"


@pytest.mark.parametrize("edit", [lambda proto: None, _only_metadata])
def test_equal_models_exit_with_zero(run: Any, model: Path, edited: Any, edit: Edit) -> None:
    outcome = run("diff", model, edited(edit), "--json")
    assert outcome.code == 0
    assert outcome.json["equal"] is True
    assert outcome.json["changes"] == []
    assert run("diff", model, model).out == "no difference\n"


def test_weights_are_sorted_by_their_relative_change(
    run: Any, model: Path, edited: Any, weights: dict[str, np.ndarray]
) -> None:
    other = {"w1": weights["w1"] * 1.01, "w3": weights["w3"] * 1.5, "b4": weights["b4"] + np.float32(1e-4)}

    def edit(proto: onnx.ModelProto) -> None:
        for name, array in other.items():
            _set(proto, name, array.astype(np.float32))

    changes = _changes(run("diff", model, edited(edit), "--json"), "weights")
    assert [change["name"] for change in changes] == ["w3", "w1", "b4"]
    for change in changes:
        before, after = (side[change["name"]].astype(np.float64) for side in (weights, other))
        expected = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert change["size"] == pytest.approx(expected, rel=1e-4)


def test_one_changed_bit_is_a_difference(run: Any, model: Path, edited: Any, weights: dict[str, np.ndarray]) -> None:
    array = weights["w4"].copy()
    array.flat[0] = np.nextafter(array.flat[0], np.float32(np.inf))
    outcome = run("diff", model, edited(lambda proto: _set(proto, "w4", array)), "--json")
    (change,) = _changes(outcome, "weights")
    assert change["name"] == "w4"
    assert 0 < change["size"] < 1e-6


def test_attributes_wiring_and_operators_are_seen(run: Any, model: Path, edited: Any) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        nodes = {node.name: node for node in proto.graph.node}
        nodes["/c1/Conv"].attribute[0].ints[:] = [0, 0, 2, 2]
        nodes["/r2/Relu"].op_type = "Tanh"

    outcome = run("diff", model, edited(edit), "--json")
    nodes = {change["name"]: (change["before"], change["after"]) for change in _changes(outcome, "nodes")}
    assert nodes.keys() == {"/c1/Conv", "/r2/Relu"}
    assert "pads=(0, 0, 2, 2)" in nodes["/c1/Conv"][1].replace("[", "(").replace("]", ")")
    assert nodes["/r2/Relu"] == ("Relu(c2)", "Tanh(c2)")
    operators = {change["name"]: (change["before"], change["after"]) for change in _changes(outcome, "operators")}
    assert operators == {"Relu": ("3", "2"), "Tanh": ("0", "1")}


def test_inputs_and_outputs_are_seen(run: Any, model: Path, edited: Any) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7

    (change,) = _changes(run("diff", model, edited(edit), "--json"), "interface")
    assert change["name"] == "input image"
    assert "7" in change["after"]


def test_a_quantized_model_is_compared_with_its_float_model(
    run: Any, model: Path, data: Path, weights: dict[str, np.ndarray]
) -> None:
    options = ("--calib-data", data, "--effort", "fast", "--no-bias-correction")
    assert run("quantize", model, *options).code == 0
    outcome = run("diff", model, "net.int8.onnx", "--json")
    schemes = {change["name"]: change["after"] for change in _changes(outcome, "schemes")}
    assert schemes["image"] == "uint8 asymmetric, per tensor"
    assert schemes["w1"] == "int8 symmetric, per channel on axis 0 (16)"
    changes = {change["name"]: change for change in _changes(outcome, "weights")}
    # Biases have another name once they are integers, and are found by their node.
    assert {"w1", "w3", "b1", "b4"} <= changes.keys()
    stored = {entry.name: numpy_helper.to_array(entry) for entry in onnx.load("net.int8.onnx").graph.initializer}
    after = stored["w3_quantized"] * stored["w3_scale"].astype(np.float64).reshape(-1, 1, 1, 1)
    expected = np.linalg.norm(after - weights["w3"]) / np.linalg.norm(weights["w3"])
    assert changes["w3"]["size"] == pytest.approx(expected, rel=1e-3)
    assert not _changes(outcome, "nodes")


def test_ranges_are_sorted_by_how_far_they_moved(run: Any, model: Path, data: Path) -> None:
    for name, method in (("a.onnx", "minmax"), ("b.onnx", "percentile")):
        options = ("--method", method, "--effort", "fast", "-o", name)
        assert run("quantize", model, "--calib-data", data, *options).code == 0
    outcome = run("diff", "a.onnx", "b.onnx", "--json")
    sizes = [change["size"] for change in _changes(outcome, "scales")]
    assert sizes
    assert sizes == sorted(sizes, reverse=True)
    assert not _changes(outcome, "schemes")
    shown = run("diff", "a.onnx", "b.onnx", "--most", "1")
    assert shown.code == 1
    assert f"the largest 1 of {len(sizes)}" in shown.out


def test_what_is_in_one_model_only_is_named(run: Any, model: Path, edited: Any) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.node.append(onnx.helper.make_node("Mul", ["r1", "gain"], ["louder"], name="/louder/Mul"))
        proto.graph.initializer.append(numpy_helper.from_array(np.float32([2.0]), "gain"))
        proto.graph.output.append(onnx.helper.make_tensor_value_info("louder", onnx.TensorProto.FLOAT, None))

    outcome = run("diff", model, edited(edit), "--json")
    assert [change["name"] for change in _changes(outcome, "nodes")] == ["/louder/Mul"]
    (weight,) = _changes(outcome, "weights")
    assert (weight["name"], weight["before"], weight["after"]) == ("gain", None, "float32 1")
    assert "in one only" in run("diff", model, "other.onnx").out


def test_a_file_that_is_no_graph_is_an_error_and_no_difference(run: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert run("diff", model, "notes.txt").code == 2
    assert run("diff", model, "missing.onnx").code == 2
