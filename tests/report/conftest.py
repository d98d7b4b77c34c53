"""A tiny classifier with its quantized twin and labelled data, and a report that was never measured."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtool.metrics.accuracy import Accuracy
from qtool.metrics.fidelity import OutputFidelity
from qtool.metrics.latency import Interval, Latency
from qtool.metrics.layers import LayerFidelity, TensorHistogram
from qtool.metrics.memory import Memory
from qtool.reporting.figures import with_figures
from qtool.reporting.model import Machine, ModelComparison, ModelReport, Report, UsedData, Verdict

FEATURES, CLASSES, SAMPLES = 8, 10, 37


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Paths of the two models and their data, and the values behind them."""

    float_model: Path
    quantized_model: Path
    data: Path
    x: np.ndarray
    weights: np.ndarray
    label: np.ndarray


def _classifier(weights: np.ndarray, *, quantized: bool, rows: str | int = "batch") -> onnx.ModelProto:
    """logits = x · weights; quantized, the weights go through int8 on a grid of step 1/4."""
    if quantized:
        stored = [
            numpy_helper.from_array(np.rint(weights * 4).astype(np.int8), "stored"),
            numpy_helper.from_array(np.float32(0.25), "scale"),
        ]
        nodes = [helper.make_node("DequantizeLinear", ["stored", "scale"], ["weights"])]
    else:
        stored, nodes = [numpy_helper.from_array(weights, "weights")], []
    nodes.append(helper.make_node("MatMul", ["x", "weights"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, weights.shape[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [rows, weights.shape[1]])],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def classifier() -> Callable[..., onnx.ModelProto]:
    return _classifier


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    random = np.random.default_rng(7)
    weights = random.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    x = random.normal(size=(SAMPLES, FEATURES)).astype(np.float32)
    label = (x @ weights).argmax(1)
    label[:4] = (label[:4] + 1) % CLASSES  # so that the float model is wrong four times
    onnx.save(_classifier(weights, quantized=False), folder / "float.onnx")
    onnx.save(_classifier(weights, quantized=True), folder / "quantized.onnx")
    np.savez(folder / "eval.npz", x=x, _label=label)
    return Pair(
        float_model=folder / "float.onnx",
        quantized_model=folder / "quantized.onnx",
        data=folder / "eval.npz",
        x=x,
        weights=weights,
        label=label,
    )


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the memory out, which takes a process each time and has no say in most figures."""
    monkeypatch.setattr(
        "qtool.workflows.report.report_times.measure_memory", lambda *_, **__: Memory(reason="not measured")
    )


@pytest.fixture
def make_output() -> Callable[..., OutputFidelity]:
    def make(**changes: Any) -> OutputFidelity:
        base = OutputFidelity(
            name="logits",
            sqnr_db=20.0,
            cosine=0.99,
            max_abs_error=0.5,
            mean_abs_error=0.1,
            top1_agreement=0.98,
            equal_share=None,
            values=1000,
            non_finite=0,
            unmatched_batches=0,
        )
        return replace(base, **changes)

    return make


@pytest.fixture
def make_report(make_output: Callable[..., OutputFidelity]) -> Callable[..., Report]:
    """Makes a report on one comparison; changes go to the comparison or to the report, whichever has such a field."""

    def make(**changes: Any) -> Report:
        comparison = ModelComparison(
            dataset="eval.npz",
            float_model=ModelReport(
                name="net.onnx",
                path="models/net.onnx",
                size_bytes=4_000_000,
                accuracy=Accuracy(top1=0.979, top5=0.999, samples=1000),
                latency=_latency(4.0, 5.0),
                throughput=Interval(median=500.0, low=490.0, high=510.0),
                memory=Memory(peak_bytes=100_000_000, added_bytes=50_000_000),
            ),
            quantized_model=ModelReport(
                name="net|int8.onnx",
                path="models/net|int8.onnx",
                size_bytes=1_000_000,
                accuracy=Accuracy(top1=0.974, top5=0.998, samples=1000),
                latency=_latency(2.0, 2.5),
                throughput=Interval(median=900.0, low=890.0, high=910.0),
                memory=Memory(peak_bytes=80_000_000, added_bytes=30_000_000),
            ),
            fidelity=(make_output(),),
            speedup=Interval(median=2.0, low=1.9, high=2.1),
        )
        own = {field.name for field in fields(ModelComparison)} - {field.name for field in fields(Report)}
        comparison = replace(comparison, **{name: value for name, value in changes.items() if name in own})
        base = Report(
            comparisons=(with_figures(comparison),),
            datasets=(UsedData(name="eval.npz", source="eval.npz", labels="_label", samples=1000),),
            batch_size=16,
            threads=2,
            rounds=25,
            versions={"qtool": "0", "onnxruntime": "1"},
            machine=Machine(system="Linux x86_64", processor="Any_CPU", cores=2),
        )
        return replace(base, **{name: value for name, value in changes.items() if name not in own})

    return make


@pytest.fixture
def full_report(make_report: Callable[..., Report]) -> Report:
    """A report on two models, with layers, histograms and a gate that failed."""
    layers = tuple(
        LayerFidelity(tensor=f"layer.{n}", operator="Conv", quantized=True, sqnr_db=10.0 + n, rescaled=n == 1)
        for n in range(3)
    )
    drawn = TensorHistogram(
        tensor="layer.0", low=-2.0, high=6.0, counts=(1, 0, 90, 9), range_low=-1.0, range_high=5.0, clipped_share=0.01
    )
    full = make_report(layers=layers, histograms=(drawn,))
    first = full.comparisons[0]
    second = replace(first, quantized_model=replace(first.quantized_model, name="<b>&.onnx"), layers=(), histograms=())
    verdict = Verdict(model="<b>&.onnx", condition="speedup < 3", outcome="failed", message="speedup is 2x")
    return replace(full, comparisons=(first, second), verdicts=(verdict,))


def _latency(median_ms: float, p95_ms: float) -> Latency:
    return Latency(
        median_ms=median_ms,
        low_ms=0.9 * median_ms,
        high_ms=1.1 * median_ms,
        p95_ms=p95_ms,
        p95_low_ms=0.9 * p95_ms,
        p95_high_ms=1.1 * p95_ms,
        rounds=25,
    )
