"""Perplexity, divergence and the same token, against torch and numpy written out; and intervals that hold."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from qtool.errors import InputError
from qtool.llm.mean_interval import mean_interval
from qtool.llm.perplexity import HeldBackText, LanguageMeter
from qtool.llm.token_scores import scored_tokens, token_losses
from qtool.metrics.fidelity import FidelityMeter
from qtool.runtime.session import Session
from tests.llm_report.tiny_llama import VOCABULARY, decoder, random_weights, rounded


@pytest.mark.parametrize("at_once", [1, 7 * 50, 1 << 21])
def test_losses_and_divergences_are_torchs(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr("qtool.llm.token_scores._CHUNK_VALUES", at_once)
    random = np.random.default_rng(0)
    reference = (5 * random.normal(size=(20, 50))).astype(np.float32)
    candidate = reference + random.normal(size=(20, 50)).astype(np.float32)
    tokens = random.integers(50, size=20)
    log_p, log_q = (torch.log_softmax(torch.tensor(x[:-1], dtype=torch.float64), 1) for x in (reference, candidate))
    found = scored_tokens(reference, candidate, tokens)
    follow = torch.tensor(tokens[1:])
    np.testing.assert_allclose(found.reference_losses, torch.nn.functional.nll_loss(log_p, follow, reduction="none"))
    np.testing.assert_allclose(found.losses, torch.nn.functional.nll_loss(log_q, follow, reduction="none"))
    np.testing.assert_allclose(token_losses(candidate, tokens), found.losses)
    divergence = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    np.testing.assert_allclose(found.divergences, divergence, rtol=1e-9)
    assert found.same.tolist() == (reference[:-1].argmax(1) == candidate[:-1].argmax(1)).tolist()
    assert 0 < found.same.mean() < 1


def test_logits_of_any_size_and_impossible_tokens_stay_finite() -> None:
    reference = np.array([[1e5, 0.0, -np.inf], [0.0, 1.0, -np.inf]], np.float32)
    found = scored_tokens(reference, reference, np.array([0, 0]))
    assert found.losses.tolist() == [0.0]
    assert found.divergences.tolist() == [0.0]


def test_tokens_that_are_not_in_the_vocabulary_are_refused() -> None:
    with pytest.raises(InputError, match="vocabulary"):
        token_losses(np.zeros((3, 5), np.float32), np.array([0, 5, 1]))


def test_not_a_number_agrees_with_nothing() -> None:
    reference = np.eye(3, dtype=np.float32)
    found = scored_tokens(reference, np.full_like(reference, np.nan), np.array([0, 1, 2]))
    assert not found.same.any()
    assert np.isnan(found.losses).all()


def test_perplexity_is_that_of_all_tokens_together() -> None:
    random = np.random.default_rng(1)
    reference, noise = random.normal(size=(2, 10, 33, 20)).astype(np.float32)
    candidate = reference + 0.3 * noise
    tokens = random.integers(20, size=(10, 33))
    meter = LanguageMeter()
    for row in range(10):
        meter.add(reference[row], candidate[row], tokens[row])
    found = meter.result()
    losses = []
    for logits in (reference, candidate):
        p = np.exp(logits[:, :-1].astype(np.float64))
        p /= p.sum(-1, keepdims=True)
        losses.append(-np.log(np.take_along_axis(p, tokens[:, 1:, None], -1)).mean())
    assert found.perplexity.value == pytest.approx(math.exp(losses[1]))
    assert found.rise.value == pytest.approx(math.exp(losses[1]) / math.exp(losses[0]) - 1)
    assert found.rise.low < found.rise.value < found.rise.high
    # Paired, the rise is known far better than either perplexity.
    wide = (found.perplexity.high - found.perplexity.low) / found.perplexity.value
    assert found.rise.high - found.rise.low < wide


@pytest.mark.parametrize("parts", [2, 4, 8, 40])
def test_intervals_hold_the_truth_about_as_often_as_they_say(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qtool.llm.mean_interval._RESAMPLES", 600)
    random = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        counts = random.integers(20, 40, size=parts).astype(float)
        # Skewed, as losses are: the mean of each is 2.
        found = mean_interval(counts * random.gamma(4.0, 0.5, size=parts), counts)
        held += found.low <= 2.0 <= found.high
    assert held >= 0.96 * 300


def test_what_does_not_vary_has_no_interval_and_one_part_has_no_ends() -> None:
    assert mean_interval([6.0, 9.0], [2.0, 3.0]) == mean_interval([3.0, 3.0], [1.0, 1.0])
    single = mean_interval([3.0], [2.0])
    assert (single.value, single.low, single.high) == (1.5, -math.inf, math.inf)
    assert math.isnan(mean_interval([math.nan, 1.0], [1.0, 1.0]).low)


def test_the_rise_on_held_back_text_is_the_one_of_the_losses(tmp_path: Path) -> None:
    weights = random_weights()
    onnx.save(decoder(weights, cache=False), tmp_path / "float.onnx")
    onnx.save(decoder(rounded(weights, 3), cache=False), tmp_path / "rounded.onnx")
    reference, candidate = Session(tmp_path / "float.onnx"), Session(tmp_path / "rounded.onnx")
    tokens = np.random.default_rng(4).integers(VOCABULARY, size=(12, 32))
    feeds = [{"input_ids": tokens[first : first + 5]} for first in range(0, 12, 5)]
    held = HeldBackText(reference, feeds)
    losses = []
    for session in (reference, candidate):
        logits = torch.tensor(session.run({"input_ids": tokens})["logits"], dtype=torch.float64)[:, :-1]
        losses.append(
            float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(tokens[:, 1:].ravel())))
        )
    assert held.perplexity == pytest.approx(math.exp(losses[0]), rel=1e-5)
    found = held.rise(candidate)
    assert found.value == pytest.approx(math.exp(losses[1] - losses[0]) - 1, rel=1e-3)
    assert found.low < found.value < found.high
    assert held.rise(reference).high == 0.0


def test_logits_are_compared_in_bounded_memory() -> None:
    reference = np.random.default_rng(0).normal(size=(1, 64, 40000)).astype(np.float32)
    candidate = reference + np.float32(0.1)
    meter = FidelityMeter()
    tracemalloc.start()
    meter.add({"logits": reference}, {"logits": candidate})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * reference.nbytes
    (found,) = meter.results()
    signal = float(np.square(reference.astype(np.float64)).sum())
    noise = float(np.square(candidate.astype(np.float64) - reference).sum())
    assert found.sqnr_db == pytest.approx(10 * math.log10(signal / noise))
