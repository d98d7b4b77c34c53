"""Fitting layers that read sequences, of which some steps are far larger than others, or stand for nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx import numpy_helper, parser

from qtool.backends.targets import PRESETS
from qtool.calib.affine import Range, params_from_range
from qtool.calib.specs import Feed
from qtool.planning import build_plan
from qtool.progress import Silent
from qtool.search.block_reconstruction import Reconstruction, reconstruct
from qtool.selection import NodeSelection
from qtool.weights.round_to_nearest import round_to_nearest
from qtool.workflows.quantize.prepare import prepare

_MASKED = """
g (float[n,6,16] x, int64[n,6] mask) => (float[n,6,24] y)
{
    m = MatMul (x, w)
    a = Add (m, b)
    r = Relu (a)
    f = Cast <to = 1> (mask)
    u = Unsqueeze (f, last)
    y = Mul (r, u)
}
"""


def _fit(feeds: list[Feed], *, reach: float) -> tuple[Reconstruction, Mapping[str, np.ndarray]]:
    """Fits one layer whose input is quantized up to ``reach``."""
    generator = np.random.default_rng(0)
    tensors = {
        "w": generator.normal(0, 0.3, (16, 24)).astype(np.float32),
        "b": generator.normal(0, 0.3, 24).astype(np.float32),
        "last": np.array([-1], np.int64),
    }
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {_MASKED}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    model = prepare(ir.from_proto(proto))
    plan = build_plan(model, PRESETS["x86"], NodeSelection())
    activations = {
        plan.source: params_from_range(Range(-reach, reach), plan.grid) for plan in plan.activations.values()
    }
    weights = {
        name: round_to_nearest(name, model.graph.initializers[name].const_value.numpy(), item.grid, item.granularity)
        for name, item in plan.weights.items()
    }
    fit = reconstruct(model, plan, PRESETS["x86"], activations, weights, feeds, Silent(), rounding=False)
    return fit, tensors


def _feeds(*, first_step: float, padding_seed: int = 7) -> list[Feed]:
    """Makes texts of four steps and two that are filled up."""
    generator, padding = np.random.default_rng(1), np.random.default_rng(padding_seed)
    mask = np.broadcast_to(np.array([1, 1, 1, 1, 0, 0], np.int64), (8, 6))
    feeds = []
    for _ in range(24):
        x = generator.normal(0, 1, (8, 6, 16)).astype(np.float32)
        x[:, 0] = first_step * np.abs(x[:, 0])
        x[:, 4:] = 5.0 * padding.normal(1, 1, (8, 2, 16)).astype(np.float32)
        feeds.append({"x": x, "mask": np.ascontiguousarray(mask)})
    return feeds


def test_what_fills_up_short_texts_has_no_say() -> None:
    first, _ = _fit(_feeds(first_step=1.0, padding_seed=7), reach=2.0)
    second, _ = _fit(_feeds(first_step=1.0, padding_seed=8), reach=2.0)
    assert first.biases
    for name, bias in first.biases.items():
        np.testing.assert_array_equal(second.biases[name], bias)


def test_a_few_very_large_steps_do_not_move_the_bias_of_all_others() -> None:
    found, tensors = _fit(_feeds(first_step=40.0), reach=5.0)
    (bias,) = found.biases.values()
    # The first step, one of four, lacks what is cut off above 5; a plain mean would move all steps by a fourth of that.
    steps = np.concatenate([feed["x"][:, 0] for feed in _feeds(first_step=40.0)])
    plain = ((steps - np.clip(steps, -5, 5)) @ tensors["w"]).mean(axis=0) / 4
    assert np.abs(bias - tensors["b"]).max() < 0.1 * np.abs(plain).max()
