"""Every preset is a scheme that its machine has integer kernels for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.backends.onnxruntime_cpu.this_machine import target_here
from qtool.backends.registry import BACKENDS
from qtool.backends.targets import PRESETS
from qtool.calib.affine import Range, params_from_range
from qtool.graph.constants import constant_array
from qtool.planning import build_plan
from qtool.qdq.insert_qdq import insert_qdq
from qtool.runtime.session import Session
from qtool.selection import NodeSelection
from qtool.weights.round_to_nearest import round_to_nearest
from qtool.workflows.quantize.prepare import prepare


@pytest.fixture(params=sorted(PRESETS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _model() -> ir.Model:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv (x, w1)
            b = Relu (a)
            c = GlobalAveragePool (b)
            d = Flatten (c)
            y = Gemm <transB = 1> (d, w2, b2)
        }"""
    )
    rng = np.random.default_rng(0)
    for tensor, shape in (("w1", (4, 3, 3, 3)), ("w2", (5, 4)), ("b2", (5,))):
        array = rng.normal(0.0, 0.3, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, tensor))
    return prepare(ir.from_proto(proto))


def test_the_preset_of_this_machine_is_registered() -> None:
    assert target_here() in PRESETS


def test_grids_are_of_eight_bits_and_differ_from_what_has_no_kernel(name: str) -> None:
    scheme = PRESETS[name]
    assert scheme.activations.bits == scheme.weights.bits == 8
    # There is no kernel for signed activations with unsigned weights.
    assert not (scheme.activations.signed and not scheme.weights.signed)


def test_presets_are_called_what_they_say() -> None:
    assert [scheme.target for scheme in PRESETS.values()] == list(PRESETS)
    assert len({scheme.machine for scheme in PRESETS.values()}) == len(PRESETS)
    assert all(scheme.backend in BACKENDS for scheme in PRESETS.values())


def test_the_layers_of_a_small_network_run_on_integers(name: str, tmp_path: Path) -> None:
    model = _model()
    plan = build_plan(model, PRESETS[name], NodeSelection())
    # Behind the Relu there is nothing below zero.
    activations = {
        planned.source: params_from_range(Range(-4.0 if planned.source == "x" else 0.0, 4.0), planned.grid)
        for planned in plan.activations.values()
    }
    weights = {}
    for tensor, weight in plan.weights.items():
        array = constant_array(model.graph.initializers[tensor])
        assert array is not None
        weights[tensor] = round_to_nearest(tensor, array, weight.grid, weight.granularity)
    quantized = ir.to_proto(insert_qdq(model, plan, activations, weights))
    path = tmp_path / "optimized.onnx"
    session = Session(quantized.SerializeToString(), threads=1, level="extended", optimized_to=path)
    if PRESETS[name].backend == "onnxruntime-cpu":
        kernels = Counter(node.op_type for node in onnx.load(path).graph.node)
        assert (kernels["QLinearConv"], kernels["QGemm"]) == (1, 1)
    else:
        # Kernels of other machines are not here to be seen; they start from what layers read.
        producers = {output: node.op_type for node in quantized.graph.node for output in node.output}
        # Values that are only moved may be integers before that.
        moved = {node.output[0]: node.input[0] for node in quantized.graph.node if node.op_type == "Flatten"}
        layers = [node for node in quantized.graph.node if node.op_type in ("Conv", "Gemm")]
        assert [[producers.get(moved.get(source, source)) for source in node.input[:2]] for node in layers] == [
            ["DequantizeLinear"] * 2
        ] * 2
    result = session.run({"x": np.ones((2, 3, 8, 8), np.float32)})["y"]
    assert np.isfinite(result).all()
