"""Graphs of very many nodes run as a chain of sessions, and give what one session gives."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.runtime import long_graphs
from qtool.runtime.divided_graph import part_of
from qtool.runtime.graphs import open_graph, saved
from qtool.runtime.profile import kernel_times
from qtool.runtime.session import Session
from qtool.runtime.session_chain import SessionChain
from qtool.weights.scaling_regions import scaling_regions
from qtool.workflows.quantize import static_search
from qtool.workflows.tune import efforts

_LAYERS, _WIDTH = 12, 8
X = np.random.default_rng(1).standard_normal((12, _WIDTH)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A residual network whose first tensor the last node reads, with a default input and a weight as an output."""
    random, weights, nodes, last = np.random.default_rng(0), [], [], "x"
    for layer in range(_LAYERS):
        weight = random.standard_normal((_WIDTH, _WIDTH)) / 8
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{layer}"))
        nodes += [
            helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"], name=f"m{layer}"),
            helper.make_node("Add", [f"m{layer}", "bias"], [f"a{layer}"], name=f"a{layer}"),
            helper.make_node("Relu", [f"a{layer}"], [f"r{layer}"], name=f"r{layer}"),
            helper.make_node("Add", [last, f"r{layer}"], [f"s{layer}"], name=f"s{layer}"),
        ]
        last = f"s{layer}"
    nodes.append(helper.make_node("Sub", [last, "x"], ["y"], name="y"))
    weights.append(numpy_helper.from_array(np.full(_WIDTH, 0.1, np.float32), "bias"))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", _WIDTH]),
        helper.make_tensor_value_info("bias", TensorProto.FLOAT, [_WIDTH]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", _WIDTH]),
        helper.make_tensor_value_info("w0", TensorProto.FLOAT, [_WIDTH, _WIDTH]),
    ]
    graph = helper.make_graph(nodes, "chain", inputs, outputs, weights)
    path = tmp_path / "long.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a graph of more than 20 nodes a long one."""
    for name, nodes in (("_MOST_NODES", 20), ("_PART_NODES", 11), ("_LEAST_PART_NODES", 5)):
        monkeypatch.setattr(long_graphs, name, nodes)


@pytest.mark.usefixtures("short")
def test_a_chain_computes_what_one_session_does(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = OnnxFile().read(model)
    with open_graph(graph) as session:
        assert isinstance(session, SessionChain)
        found = [session.run({"x": X}), session.run({"x": X[:3], "bias": np.zeros(_WIDTH, np.float32)})]
        assert [spec.name for spec in session.inputs] == ["x"]
        assert list(session.run({"x": X}, ["w0"])) == ["w0"]
    monkeypatch.setattr(long_graphs, "_MOST_NODES", 1000)
    with open_graph(graph) as session:
        assert not isinstance(session, SessionChain)
        expected = [session.run({"x": X}), session.run({"x": X[:3], "bias": np.zeros(_WIDTH, np.float32)})]
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other) == ["y", "w0"]
        for name in one:
            np.testing.assert_allclose(one[name], other[name], atol=1e-5)


@pytest.mark.usefixtures("short")
def test_a_chain_leaves_the_graph_as_it_is(model: Path) -> None:
    graph = OnnxFile().read(model)
    before = ir.to_proto(graph).SerializeToString()
    with open_graph(graph) as session:
        session.run({"x": X})
        assert ir.to_proto(graph).SerializeToString() == before


@pytest.mark.usefixtures("short")
def test_a_graph_is_divided_where_fewest_tensors_pass(model: Path) -> None:
    graph = OnnxFile().read(model)
    parts = [part_of(graph, part) for part in long_graphs.short_parts(graph)]
    assert [node.name for part in parts for node in part.graph] == [node.name for node in graph.graph]
    assert all(len(part.graph) <= 11 for part in parts)
    # Behind a sum there are that and the input that the last node reads; anywhere else there is one more.
    assert all(part.graph[-1].op_type == "Add" and (part.graph[-1].name or "").startswith("s") for part in parts[:-1])


@pytest.mark.usefixtures("short")
def test_parts_have_types_where_the_graph_has_none(model: Path) -> None:
    parts = long_graphs.typed_parts(OnnxFile().read(model))
    assert len(parts) > 3
    assert all(value.dtype is not None and value.shape is not None for part in parts for value in part.graph.inputs)


@pytest.mark.usefixtures("short")
def test_parts_are_saved_with_their_weights_apart(model: Path, tmp_path: Path) -> None:
    part = long_graphs.typed_parts(OnnxFile().read(model))[1]
    folder = tmp_path / "part"
    folder.mkdir()
    with saved(part, folder, 0) as path:
        assert isinstance(path, Path)
        assert [spec.name for spec in Session(path).inputs] == [value.name for value in part.graph.inputs]
    assert (folder / "model.onnx.data").exists()


@pytest.mark.usefixtures("short")
def test_every_kernel_of_a_chain_is_timed(model: Path) -> None:
    (times,) = kernel_times([OnnxFile().read(model)], {"x": X})
    assert {f"s{layer}" for layer in range(_LAYERS)} <= times.keys()
    assert all(time.seconds > 0 for time in times.values())


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_quantization_gives_the_same_model_either_way(
    run: Any, model: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    np.savez("x.npz", x=X)
    proto = onnx.load(model)
    del proto.graph.output[1], proto.graph.input[1]
    onnx.save(proto, model)
    given = ["--calib-data", "x.npz", "--effort", "fast"] if scheme == "static" else []
    arguments = ["quantize", model, "--scheme", scheme, "--target", "x86", *given, "--json"]
    whole = run(*arguments, "-o", "whole.onnx")
    assert whole.code == 0, whole.err
    for name, nodes in (("_MOST_NODES", 30), ("_PART_NODES", 25), ("_LEAST_PART_NODES", 12)):
        monkeypatch.setattr(long_graphs, name, nodes)
    parts = run(*arguments, "-o", "parts.onnx")
    assert parts.code == 0, parts.err
    assert parts.json["coverage"] == whole.json["coverage"]
    assert Path("parts.onnx").read_bytes() == Path("whole.onnx").read_bytes()


def test_regions_that_nothing_can_scale_are_searched_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qtool.weights import scaling_regions as searched

    visited = []
    follow = searched._scaled_inputs
    monkeypatch.setattr(searched, "_scaled_inputs", lambda node: (visited.append(node), follow(node))[1])
    assert scaling_regions(OnnxFile().read(model)) == ()
    assert len(visited) <= 4 * _LAYERS + 1


def test_little_effort_searches_nothing_on_a_long_graph(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez("x.npz", x=X)
    proto = onnx.load(model)
    del proto.graph.output[1], proto.graph.input[1]
    onnx.save(proto, model)
    monkeypatch.setattr(efforts, "_MOST_SEARCHED_NODES", 20)
    arguments = ["quantize", model, "--calib-data", "x.npz", "--effort", "fast", "--target", "x86-vnni", "--smallest"]
    found = run(*arguments, "-o", "searched_less.onnx", "--json")
    assert found.code == 0, found.err
    assert "nodes: --effort fast searches nothing there" in found.err
    assert found.json["gains"] == []
    # Every layer is on integers all the same.
    assert sum(node.op_type == "QuantizeLinear" for node in onnx.load("searched_less.onnx").graph.node) >= _LAYERS
    monkeypatch.setattr(efforts, "_MOST_SEARCHED_NODES", 1000)
    usual = run(*arguments, "-o", "usual.onnx", "--json")
    assert "searches nothing" not in usual.err
    assert usual.json["gains"]


def test_corrections_asked_for_by_name_are_applied_to_long_graphs() -> None:
    fast = efforts.searches(efforts.Effort.FAST, gptq=True)
    assert fast.for_nodes(12_000) is fast
    less = fast.for_nodes(12_001)
    assert less.gptq is efforts.Policy.ALWAYS
    assert less.smoothquant is less.cross_layer_equalization is efforts.Policy.NEVER
    assert less.bias_correction is efforts.Policy.ALWAYS
    assert [less.ranges, less.need_evaluator, less.times_layers] == [False, False, False]
    balanced = efforts.searches(efforts.Effort.BALANCED)
    assert balanced.for_nodes(1_000_000) is balanced


def test_what_stays_float_by_prediction_is_not_calibrated(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, widths = np.random.default_rng(3), [*[_WIDTH] * 20, 1024, 1024, 1024, _WIDTH]
    weights = [
        numpy_helper.from_array((random.standard_normal(pair) / np.sqrt(pair[0])).astype(np.float32), f"w{layer}")
        for layer, pair in enumerate(itertools.pairwise(widths))
    ]
    tensors = [f"t{layer}" for layer in range(len(weights))]
    nodes = [
        helper.make_node(operator, inputs, [output], name=output)
        for layer, tensor in enumerate(tensors)
        for operator, inputs, output in (
            ("MatMul", [tensors[layer - 1] if layer else "x", f"w{layer}"], f"m{layer}"),
            ("Relu", [f"m{layer}"], tensor),
        )
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", _WIDTH]) for name in ("x", tensors[-1])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=X)
    monkeypatch.setattr(efforts, "_MOST_SEARCHED_NODES", 20)
    watched: list[str] = []
    gather_by = static_search.gather_by

    def spied(workers: Any) -> Any:
        def gather(model: Any, wanted: Any, *arguments: Any, **options: Any) -> Any:
            watched.extend(wanted.tensors)
            return gather_by(workers)(model, wanted, *arguments, **options)

        return gather

    monkeypatch.setattr(static_search, "gather_by", spied)
    options = ("--calib-data", "x.npz", "--effort", "fast", "--target", "x86-vnni", "--machine-profile", "shipped")
    found = run("quantize", "m.onnx", *options, "--json")
    assert found.code == 0, found.err
    kept = set(found.json["kept_float_for_speed"])
    assert {f"m{layer}" for layer in range(19)} <= kept
    assert {"m20", "m21"}.isdisjoint(kept)
    assert sum(node.op_type == "QuantizeLinear" for node in onnx.load("m.int8.onnx").graph.node) >= 2
    # The inputs of the layers on integers are seen, and of the others nothing.
    assert "t20" in watched
    assert {f"t{layer}" for layer in range(18)}.isdisjoint(watched)
    written = Path("m.int8.onnx").read_bytes()
    again = run("quantize", "--locked", "m.int8.manifest.json", "--force")
    assert again.code == 0, again.err
    assert Path("m.int8.onnx").read_bytes() == written
