"""Every backend keeps what its protocol promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from qtool.backends.execution import TARGET_KEY
from qtool.backends.registry import BACKENDS, backend_named
from qtool.backends.runtimes import RUNTIMES
from qtool.backends.targets import PRESETS
from qtool.planning import build_plan
from qtool.selection import NodeSelection

_MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[n, 4] x) => (float[n, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
    y = MatMul(x, w)
}
"""


@pytest.fixture(params=sorted(BACKENDS))
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def _model() -> ir.Model:
    model = ir.from_onnx_text(_MODEL)
    for number, node in enumerate(model.graph):
        node.name = f"node_{number}"
    return model


def test_the_targets_of_all_backends_are_all_there_is() -> None:
    listed = [target for backend in BACKENDS for target in backend_named(backend).targets]
    assert listed == list(PRESETS)


def test_targets_name_themselves_and_their_backend(name: str) -> None:
    backend = backend_named(name)
    assert backend.name == name
    assert {scheme.backend for scheme in backend.targets.values()} == {name}
    assert all(key == scheme.target for key, scheme in backend.targets.items())


def test_plans_come_from_the_backend_of_the_scheme(name: str) -> None:
    backend = backend_named(name)
    for scheme in backend.targets.values():
        model = _model()
        placed = backend.place(model.graph, scheme, NodeSelection(), {}, {})
        planned = build_plan(_model(), scheme, NodeSelection())
        assert (placed.activations, placed.weights) == (planned.activations, planned.weights)
        assert "w" in placed.weights


def test_a_graph_that_is_finished_runs_and_tells_where_it_belongs(name: str) -> None:
    backend = backend_named(name)
    scheme = next(iter(backend.targets.values()))
    model = _model()
    backend.finish(model, scheme)
    assert model.metadata_props.get(TARGET_KEY) == scheme.target
    with backend.execution(scheme).open(model, threads=1) as session:
        outputs = session.run({"x": np.ones((1, 4), np.float32)})
    np.testing.assert_allclose(outputs["y"], [[16.0, 20.0]])


def test_coverage_is_that_of_a_runtime_which_is_here(name: str) -> None:
    backend = backend_named(name)
    coverage = backend.coverage(_model())
    assert (coverage is not None) == backend.has_kernels_here
    if coverage is not None:
        assert [(node.operator, node.kernel) for node in coverage.nodes] == [("MatMul", None)]
        assert coverage.misses[0].reason
        assert coverage.runtime in RUNTIMES


def test_float_models_run_beside_quantized_ones(name: str) -> None:
    backend = backend_named(name)
    execution = backend.execution(next(iter(backend.targets.values())))
    with execution.open_float(_model(), threads=1) as session:
        assert ([spec.name for spec in session.inputs], [spec.name for spec in session.outputs]) == (["x"], ["y"])
        outputs = session.run({"x": np.ones((3, 4), np.float32)}, ["y"])
    np.testing.assert_allclose(outputs["y"], [[16.0, 20.0]] * 3)
    assert backend.judged_in


def test_compilers_judge_node_by_node_whatever_the_scheme(name: str) -> None:
    backend = backend_named(name)
    scheme = next(iter(backend.targets.values()))
    if not backend.has_kernels_here:
        assert backend.execution(None) == backend.execution(replace(scheme, per_channel=False))
        assert backend.execution(None).level == "none"
