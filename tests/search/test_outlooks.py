"""What is said of held-back samples holds for fresh ones, also where a gate has decided nearly all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtool.metrics.outlook import Outlook, OutlookMeter
from tests.closeness import sqnr_db_of

_GATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Softmax": lambda x: (
        np.exp(x - x.max(1, keepdims=True)) / np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)
    ),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def _outlook(gate: str, left: np.ndarray, noise: np.ndarray) -> Outlook:
    meter = OutlookMeter(gate)
    open_ = _GATES[gate]
    for one, other in zip(np.array_split(left, 3), np.array_split(left + noise, 3), strict=True):
        pair = (one.astype(np.float32), other.astype(np.float32))
        meter.add(open_(one).astype(np.float32), open_(other).astype(np.float32), len(one), pair)
    found = meter.result()
    assert found is not None
    return found


@pytest.mark.parametrize("gate", _GATES)
@settings(max_examples=15)
@given(classes=st.integers(2, 8), seed=st.integers(0, 2**16), decided=st.floats(0.8, 1.0))
def test_fresh_samples_lie_in_the_interval_whatever_share_is_decided(
    gate: str, classes: int, seed: int, decided: float
) -> None:
    r = np.random.default_rng(seed)

    def drawn(count: int, share: float) -> np.ndarray:
        scale = np.where(r.random(count) < share, 25.0, 1.0)[:, None]
        return r.normal(0, 1, (count, classes)) * scale + np.eye(classes)[r.integers(0, classes, count)] * scale

    left = drawn(64, 1.0)
    outlook = _outlook(gate, left, r.normal(0, 0.1, left.shape))
    fresh = drawn(4000, decided)
    found = sqnr_db_of(_GATES[gate](fresh), _GATES[gate](fresh + r.normal(0, 0.1, fresh.shape)))
    assert outlook.low_db - 2.0 < found


def test_a_set_of_decided_samples_says_little_and_a_mixed_one_says_more() -> None:
    r = np.random.default_rng(0)
    left = r.normal(0, 1, (40, 2)) + np.array([30.0, 0.0]) * np.sign(r.normal(size=(40, 1)))
    decided = _outlook("Softmax", left, r.normal(0, 0.2, left.shape))
    assert (decided.undecided, decided.samples, decided.gate) == (0, 40, "Softmax")
    assert decided.says_little
    assert decided.high_db > decided.low_db + 40
    mixed = _outlook("Softmax", left / 20, r.normal(0, 0.2, left.shape))
    assert mixed.undecided is not None
    assert mixed.undecided > 20
    assert not mixed.says_little


def test_the_interval_without_a_gate_is_that_of_the_samples() -> None:
    r = np.random.default_rng(1)
    a = r.normal(0, 1, (200, 5)).astype(np.float32)
    b = (a + r.normal(0, 0.1, a.shape) * r.uniform(0.2, 2, (200, 1))).astype(np.float32)
    meter = OutlookMeter()
    meter.add(a, b, 200)
    found = meter.result()
    assert found is not None
    assert found.low_db < sqnr_db_of(a.astype(np.float64), b) < found.high_db
    assert found.high_db - found.low_db < 3
    assert found.undecided is None
    assert not found.says_little


@pytest.mark.parametrize("case", ["one sample", "no noise", "integers", "other rows"])
def test_nothing_is_foretold_of_nothing(case: str) -> None:
    a = np.random.default_rng(0).normal(size=(1 if case == "one sample" else 6, 3)).astype(np.float32)
    b = a if case == "no noise" else a + np.float32(0.1)
    a, b = (x.astype(np.int64) if case == "integers" else x for x in (a, b))
    meter = OutlookMeter("Softmax")
    meter.add(a, b, len(a), (a, b) if case == "other rows" else None)
    found = meter.result()
    # What the gate does not explain is judged as it is.
    assert (found is None) == (case != "other rows")
    assert found is None or found.gate is None


_NET = """g (float[n,3,12,12] x) => (float[n,2] y) {
    a = Conv <strides = [2, 2]> (x, w1, b1)
    r = Relu (a)
    b = Conv (r, w2, b2)
    q = Relu (b)
    p = GlobalAveragePool (q)
    f = Flatten (p)
    z = Gemm <transB = 1> (f, w3, b3)
    y = Softmax <axis = -1> (z)
}"""


@pytest.fixture
def classifier(save: Any, tmp_path: Path) -> Path:
    """Two classes, decided for all of the data in data.npz, and for few images of fresh.npz."""
    r = np.random.default_rng(3)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (2, 8), "b3": (2,)}
    tensors = {name: r.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    tensors["w3"] *= 60
    path: Path = save("net.onnx", _NET, **tensors)
    session = ort.InferenceSession(
        save(
            "logits.onnx",
            _NET.replace("=> (float[n,2] y)", "=> (float[n,2] z)").replace("y = Softmax <axis = -1> (z)\n", ""),
            **tensors,
        )
    )
    images = r.normal(0, 1, (3000, 3, 12, 12)).astype(np.float32)
    gap = np.diff(session.run(None, {"x": images})[0])[:, 0]
    tensors["b3"][0] += np.median(gap)
    path = save("net.onnx", _NET, **tensors)
    gap -= np.median(gap)
    np.savez(tmp_path / "data.npz", x=images[np.abs(gap) > 12][:160])
    np.savez(tmp_path / "fresh.npz", x=images[np.abs(gap) < 3][:100])
    return path


def test_quantize_warns_of_decided_samples_and_its_interval_holds_fresh_ones(
    run: Any, classifier: Path, tmp_path: Path
) -> None:
    given = ("--calib-data", "data.npz", "--target", "x86", "--batch-size", 4, "--effort", "fast")
    outcome = run("quantize", classifier, *given, "--json")
    assert outcome.code == 0, outcome.err
    (told,) = outcome.json["outputs"]
    outlook = told["outlook"]
    assert outlook["says_little"]
    shown = run("quantize", classifier, *given, "--force")
    assert "the samples are inconclusive for 'y': its Softmax is undecided for 0 of" in " ".join(shown.err.split())
    assert "'y' on other data like these:" in shown.out
    x = np.load(tmp_path / "fresh.npz")["x"]
    expected, found = (
        ort.InferenceSession(path).run(None, {"x": x})[0].astype(np.float64)
        for path in (classifier, classifier.with_name("net.int8.onnx"))
    )
    assert outlook["low_db"] - 3 < sqnr_db_of(expected, found) < outlook["high_db"]
    assert sqnr_db_of(expected, found) < told["sqnr_db"] - 6


def test_the_search_does_not_stop_at_a_gate_that_hides_the_noise(run: Any, classifier: Path) -> None:
    """Corrections and layers to keep float are judged by what the Softmax reads."""
    given = ("--calib-data", "data.npz", "--target", "x86", "--batch-size", 4)
    outcome = run("quantize", classifier, *given, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["kept_float"]["integers_everywhere_sqnr_db"] < outcome.json["outputs"][0]["sqnr_db"] - 6


def test_samples_without_signal_say_nothing() -> None:
    random = np.random.default_rng(3)
    pages = [random.normal(0, 1, (1, 50)), np.zeros((1, 50)), random.normal(0, 1, (1, 50))]
    meter = OutlookMeter()
    for page in pages:
        meter.add(page, page * 1.01, 1)
    found = meter.result()
    assert found is not None
    assert (found.low_db, found.high_db) == (pytest.approx(40.0), pytest.approx(40.0))
