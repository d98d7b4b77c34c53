"""What is better on the samples it was tuned on has to be better on samples held back from it, too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser
from typer.testing import CliRunner

from qtool.backends.execution import AS_IT_IS
from qtool.backends.targets import PRESETS
from qtool.calib.specs import Feed
from qtool.cli.app import app
from qtool.progress import SILENT
from qtool.search.held_back_evidence import Evidence, HeldBackSamples
from qtool.selection import NodeSelection
from qtool.workflows.convert.model_source import ModelSource
from qtool.workflows.quantize.data_request import DataRequest
from qtool.workflows.quantize.prepared_model import load_prepared
from qtool.workflows.quantize.request import QuantizeRequest
from qtool.workflows.quantize.static_search import StaticSearch
from qtool.workflows.tune.efforts import Effort, searches
from qtool.workflows.tune.sample_selection import spread_batches
from qtool.workflows.tune.timing import Timing

_NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[batch,24] x) => (float[batch,12] y)
{
    h = MatMul (x, w1)
    r = Relu (h)
    y = MatMul (r, w2)
}
"""
_SAMPLES = 96
# Batches hold four samples; every tenth is for the check of the result, and of the others every second is held back.
_BATCH = 4
_USED = 88
_ALONE = ("--method", "minmax", "--max-float", "0", "--smallest", "--target", "x86-vnni")
_OFF = ("--no-cle", "--no-smoothquant", "--no-gptq", "--no-bias-correction", "--no-learned-rounding")
_NOTHING_ELSE = (*_ALONE, *_OFF, "--no-weight-clipping")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Two layers, as net.onnx."""
    generator = np.random.default_rng(2)
    proto = parser.parse_model(_NETWORK)
    for name, shape in (("w1", (24, 32)), ("w2", (32, 12))):
        array = generator.normal(0, 0.4, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    return path


def _saved(folder: Path, x: np.ndarray) -> Path:
    np.savez(folder / "data.npz", x=x.astype(np.float32))
    return folder / "data.npz"


def _alike(count: int = _SAMPLES) -> np.ndarray:
    return np.random.default_rng(4).normal(0, 1, (count, 24))


def _misleading() -> np.ndarray:
    """Returns data of which the batches that fits see use two inputs only, one of them always as the other."""
    x = _alike()
    batch = np.arange(_SAMPLES) // _BATCH
    seen = (batch - batch // 10) % 2 == 1
    x[seen, 2:] = 0.0
    x[seen, 1] = x[seen, 0]
    return x


def _quantized(network: Path, data: Path, name: str, *options: str) -> tuple[Any, bytes]:
    words = ["quantize", str(network), "--calib-data", str(data), "-o", str(network.with_name(name)), "--json"]
    result = CliRunner().invoke(app, [*words, *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), network.with_name(name).read_bytes()


def _model(weight: np.ndarray) -> ir.Model:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[batch,6] x) => (float[batch,5] y) { y = MatMul(x, w) }'
    model = ir.from_onnx_text(text)
    value = ir.Value(name="w", const_value=ir.tensor(weight.astype(np.float32), name="w"))
    model.graph.register_initializer(value)
    node = next(iter(model.graph))
    node.replace_input_with(1, value)
    return model


def test_the_gain_is_the_mean_difference_of_the_noise_in_each_sample() -> None:
    generator = np.random.default_rng(0)
    weight, x = generator.normal(0, 1, (6, 5)), generator.normal(0, 1, (40, 6)).astype(np.float32)
    worse, better = (weight + scale * generator.normal(0, 1, weight.shape) for scale in (0.1, 0.02))
    samples = HeldBackSamples(_model(weight), [{"x": x[:16]}, {"x": x[16:]}], execution=AS_IT_IS)
    before, after = samples.noise(_model(worse)), samples.noise(_model(better))
    found = before.evidence("change", after)
    errors = [np.square(x @ weight - x @ other).sum(axis=1) for other in (worse, better)]
    decibels = 10 * np.log10(errors[0] / errors[1])
    assert found.gain_db == pytest.approx(decibels.mean(), abs=0.01)
    spread = decibels.std(ddof=1) / np.sqrt(len(x))
    assert found.gain_db - 4 * spread < found.low_db < found.gain_db - 2 * spread
    assert found.gain_db + 2 * spread < found.high_db < found.gain_db + 4 * spread
    signal = np.square(x @ weight).sum()
    assert found.before_db == pytest.approx(10 * np.log10(signal / errors[0].sum()), abs=0.01)
    assert (found.samples, found.kept) == (40, True)
    assert not after.evidence("back", before).kept


def test_what_ruins_a_few_samples_is_no_gain() -> None:
    generator = np.random.default_rng(0)
    weight = generator.normal(0, 1, (6, 5))
    x = generator.normal(0, 1, (64, 6)).astype(np.float32)
    x[:, 5] = 0.0
    x[7, 5] = 3.0
    everywhere, ruins = weight + 0.05 * generator.normal(0, 1, weight.shape), weight.copy()
    ruins[:5] += 0.03 * generator.normal(0, 1, (5, 5))
    ruins[5] += 4.0
    samples = HeldBackSamples(_model(weight), [{"x": x}], execution=AS_IT_IS)
    found = samples.noise(_model(everywhere)).evidence("change", samples.noise(_model(ruins)))
    assert found.low_db > 0
    assert found.after_db < found.before_db
    assert not found.kept


def test_values_that_are_not_finite_are_no_gain() -> None:
    generator = np.random.default_rng(0)
    weight, x = generator.normal(0, 1, (6, 5)), generator.normal(0, 1, (8, 6)).astype(np.float32)
    samples = HeldBackSamples(_model(weight), [{"x": x}], execution=AS_IT_IS)
    sound, broken = samples.noise(_model(1.01 * weight)), samples.noise(_model(np.nan * weight))
    assert not sound.evidence("change", broken).kept
    assert broken.evidence("change", sound).kept


def _scores(weight: np.ndarray, *, flat: bool) -> ir.Model:
    """Returns a model that scores each of four steps; ``flat`` ones compute the logits of all steps as rows."""
    product = (
        "r = Reshape (x, rows) p = MatMul (r, w) l = Reshape (p, steps) y = Softmax (l)"
        if flat
        else "l = MatMul (x, w) y = Softmax (l)"
    )
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[batch,4,6] x) => (float[batch,4,5] y) {{ {product} }}'
    )
    shapes = {"rows": [-1, 6], "steps": [-1, 4, 5]} if flat else {}
    constants = {"w": weight.astype(np.float32)} | {name: np.asarray(shape) for name, shape in shapes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return ir.from_proto(proto)


def test_logits_of_another_shape_are_compared_in_order() -> None:
    generator = np.random.default_rng(0)
    weight, x = generator.normal(0, 1, (6, 5)), generator.normal(0, 1, (24, 4, 6)).astype(np.float32)
    worse, better = (weight + scale * generator.normal(0, 1, weight.shape) for scale in (0.1, 0.02))
    samples = HeldBackSamples(_scores(weight, flat=False), [{"x": x[:16]}, {"x": x[16:]}], execution=AS_IT_IS)
    found, expected = (
        samples.noise(_scores(worse, flat=flat)).evidence("change", samples.noise(_scores(better, flat=flat)))
        for flat in (True, False)
    )
    assert found.kept
    assert found.gain_db == pytest.approx(expected.gain_db, abs=1e-3)
    assert (found.low_db, found.high_db) == pytest.approx((expected.low_db, expected.high_db), abs=1e-3)


def _verdicts(network: Path, data: Path) -> tuple[Evidence, Evidence]:
    """Returns what the samples that weights were fitted on say about them, and what others say."""
    config = searches(
        Effort.BEST,
        ranges=False,
        cross_layer_equalization=False,
        smoothquant=False,
        bias_correction=False,
        weight_clipping=False,
        gptq=False,
        learned_rounding=False,
        most_float=0.0,
    )
    source, request = ModelSource(path=network), DataRequest(source=str(data))
    wanted = QuantizeRequest(
        source=source, data=request, scheme=PRESETS["x86-vnni"], searches=config, timing=Timing(for_size=True)
    )
    prepared = load_prepared(source, request, wanted.scheme, NodeSelection(), SILENT)
    searching = StaticSearch(prepared, None, wanted, SILENT)
    result = searching.run(config)
    assert config.further is not None
    assert searching.samples is not None
    feeds = list(searching.samples.holdout.used(request.feeds(prepared.samples.dataset, *prepared.interface)))
    held_back = spread_batches(feeds, samples=_USED // 2, available=_USED)
    further = searching.run(config.further, held_back=held_back, before=result)
    (fit,) = further.search.fits({})
    changed = fit.apply(result.candidates)
    seen = [feed for number, feed in enumerate(feeds) if number not in held_back.batches]

    def verdict(batches: Sequence[Feed]) -> Evidence:
        samples = HeldBackSamples(prepared.original, batches, execution=AS_IT_IS)
        return samples.noise(result.candidates({}).model).evidence("fit", samples.noise(changed({}).model))

    return verdict(seen), verdict(held_back.feeds)


def test_what_is_better_only_where_it_was_tuned_is_refused(network: Path, tmp_path: Path) -> None:
    data = _saved(tmp_path, _misleading())
    seen, others = _verdicts(network, data)
    assert seen.kept
    assert seen.low_db > 0
    assert others.gain_db < 0
    assert not others.kept
    balanced, expected = _quantized(network, data, "balanced.onnx", *_NOTHING_ELSE)
    best, given = _quantized(network, data, "best.onnx", *_NOTHING_ELSE, "--effort", "best")
    assert balanced["held_back_evidence"] == []
    (refused,) = (one for one in best["held_back_evidence"] if one["change"] == "layer reconstruction")
    assert refused["gain_db"] < 0
    assert not any(one["kept"] for one in best["held_back_evidence"])
    assert given == expected


def test_what_held_back_samples_show_to_be_better_is_kept(network: Path, tmp_path: Path) -> None:
    data = _saved(tmp_path, 2 + _alike())
    _, expected = _quantized(network, data, "balanced.onnx", *_NOTHING_ELSE)
    best, given = _quantized(network, data, "best.onnx", *_NOTHING_ELSE, "--effort", "best")
    (kept,) = (one for one in best["held_back_evidence"] if one["change"] == "layer reconstruction")
    assert kept["kept"]
    assert 0 < kept["low_db"] < kept["gain_db"] < kept["high_db"]
    assert kept["after_db"] > kept["before_db"]
    assert best["fitted_weights"]
    assert given != expected
    manifest = json.loads(network.with_name("best.manifest.json").read_text(encoding="utf-8"))
    assert manifest["quantized"]["held_back_evidence"] == best["held_back_evidence"]


def test_a_few_samples_are_not_enough_to_change_anything(network: Path, tmp_path: Path) -> None:
    data = _saved(tmp_path, _alike(6))
    _, expected = _quantized(network, data, "balanced.onnx", *_NOTHING_ELSE)
    best, given = _quantized(network, data, "best.onnx", *_NOTHING_ELSE, "--effort", "best")
    assert best["held_back_evidence"] == []
    assert given == expected


def test_what_is_improved_takes_as_long_as_it_needs() -> None:
    best = searches(Effort.BEST)
    assert searches(Effort.BALANCED).limited
    assert not best.limited
    assert best.further is not None
    assert not best.further.limited
