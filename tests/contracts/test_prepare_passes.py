"""Every registered prepare pass keeps what a model computes, and has nothing left to do the second time."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from qtool.passes import PREPARE_PASSES
from qtool.runtime.session import Session
from qtool.workflows.quantize.prepare import prepare

_FREE_LENGTH = 2


@pytest.fixture(params=list(PREPARE_PASSES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _pass(name: str) -> ir.passes.PassBase:
    module, _, attribute = PREPARE_PASSES[name].partition(":")
    graph_pass: ir.passes.PassBase = getattr(import_module(module), attribute)()
    return graph_pass


def _prepared_up_to(name: str, model: onnx.ModelProto) -> ir.Model:
    """Runs the passes that come before ``name``."""
    graph = ir.from_proto(model)
    for earlier in PREPARE_PASSES:
        if earlier == name:
            break
        graph = _pass(earlier)(graph).model
    return graph


def _run(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    session = Session(model.SerializeToString(), threads=1, level="none")
    overridable = {initializer.name for initializer in model.graph.initializer}
    rng = np.random.default_rng(11)
    feeds = {}
    for spec in session.inputs:
        assert spec.shape is not None
        if spec.name in overridable:
            continue
        shape = [length if isinstance(length, int) else _FREE_LENGTH for length in spec.shape]
        values = rng.normal(0.5, 2.0, shape) if spec.dtype.kind == "f" else rng.integers(0, 7, shape)
        feeds[spec.name] = values.astype(spec.dtype)
    return session.run(feeds)


def _assert_same_outputs(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    expected, got = _run(before), _run(after)
    assert list(got) == list(expected)
    for output, values in expected.items():
        assert got[output].dtype == values.dtype
        np.testing.assert_allclose(got[output], values, rtol=2e-5, atol=2e-5, err_msg=output)


def _interface(model: onnx.ModelProto) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    stored = {initializer.name for initializer in model.graph.initializer}
    inputs = [(v.name, str(v.type)) for v in model.graph.input if v.name not in stored]
    return inputs, [(v.name, str(v.type)) for v in model.graph.output]


def _forget_inferred_shapes(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _forget_inferred_shapes(attribute.g)


def test_a_pass_keeps_the_outputs_in_its_place(name: str, float_model: onnx.ModelProto) -> None:
    graph = _prepared_up_to(name, float_model)
    _assert_same_outputs(float_model, ir.to_proto(_pass(name)(graph).model))


def test_a_pass_keeps_the_outputs_on_its_own(name: str, float_model: onnx.ModelProto) -> None:
    after = _pass(name)(ir.from_proto(float_model)).model
    _assert_same_outputs(float_model, ir.to_proto(after))


def test_a_second_application_changes_nothing(name: str, float_model: onnx.ModelProto) -> None:
    once = _pass(name)(_prepared_up_to(name, float_model)).model
    before = ir.to_proto(once)
    again = _pass(name)(once)
    assert ir.to_proto(again.model) == before
    assert not again.modified


def test_a_pass_that_reports_no_change_made_none(name: str, float_model: onnx.ModelProto) -> None:
    graph = _prepared_up_to(name, float_model)
    before = ir.to_proto(graph)
    result = _pass(name)(graph)
    after = ir.to_proto(result.model)
    if not result.modified:
        _forget_inferred_shapes(before.graph)
        _forget_inferred_shapes(after.graph)
        assert after == before


def test_a_pass_keeps_the_interface_and_the_metadata(name: str, float_model: onnx.ModelProto) -> None:
    before = _prepared_up_to(name, float_model)
    interface = _interface(ir.to_proto(before))
    after = ir.to_proto(_pass(name)(before).model)
    assert _interface(after) == interface
    assert {entry.key: entry.value for entry in after.metadata_props}["author"] == "a person"
    assert after.graph.name == "g"


def test_a_prepared_model_is_valid_and_all_its_nodes_have_names(float_model: onnx.ModelProto) -> None:
    prepared = ir.to_proto(prepare(ir.from_proto(float_model)))
    onnx.checker.check_model(prepared, full_check=True)
    names = [node.name for node in prepared.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert {entry.domain: entry.version for entry in prepared.opset_import}[""] >= 13
    assert not prepared.functions
    assert all(node.op_type != "Constant" for node in prepared.graph.node)


def test_preparing_keeps_the_outputs_and_the_interface(float_model: onnx.ModelProto) -> None:
    prepared = ir.to_proto(prepare(ir.from_proto(float_model)))
    _assert_same_outputs(float_model, prepared)
    assert _interface(prepared)[0] == _interface(float_model)[0]
    assert [name for name, _ in _interface(prepared)[1]] == [name for name, _ in _interface(float_model)[1]]


def test_preparing_twice_is_preparing_once(float_model: onnx.ModelProto) -> None:
    once = ir.to_proto(prepare(ir.from_proto(float_model)))
    twice = ir.to_proto(prepare(ir.from_proto(once)))
    assert twice == once


def test_every_pass_says_what_it_does(name: str) -> None:
    graph_pass = type(_pass(name))
    assert graph_pass.__doc__
    assert graph_pass.call.__doc__
