"""Greedy generation with and without a cache, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from qtool.calib.specs import TensorSpec
from qtool.errors import InputError
from qtool.llm.cached_feeds import DecoderInputs
from qtool.llm.generation import continuation
from qtool.runtime.session import Session
from tests.llm_report.tiny_llama import (
    CONTEXT,
    EPSILON,
    HEAD,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    THETA,
    VOCABULARY,
    decoder,
    random_weights,
)

PROMPT = [1, 5, 9, 4, 7]


def _transformers_says(count: int) -> list[int]:
    transformers = pytest.importorskip("transformers", reason="what generation is compared with")
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict({name: torch.tensor(value) for name, value in random_weights().items()})
    with torch.no_grad():
        said = model.generate(torch.tensor([PROMPT]), max_new_tokens=count, do_sample=False)
    return said[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("cache", [True, False])
def test_greedy_tokens_are_those_of_transformers(tmp_path: Path, cache: bool) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(random_weights(), cache=cache), path)
    session = Session(path)
    inputs = DecoderInputs.of(session.inputs, session.outputs)
    assert len(inputs.caches) == (2 * LAYERS if cache else 0)
    expected = _transformers_says(64)
    assert len(set(expected)) > 3
    assert continuation(session, inputs, PROMPT, count=64) == expected
    end = expected[10]
    assert continuation(session, inputs, PROMPT, count=64, ends={end}) == expected[: expected.index(end) + 1]


def test_steps_hand_the_caches_on_and_positions_count(tmp_path: Path) -> None:
    names = ["input_ids", "attention_mask", "position_ids"]
    inputs = [TensorSpec(name, np.dtype(np.int64), ("batch", "length")) for name in names]
    cache = TensorSpec("past_key_0", np.dtype(np.float32), ("batch", 2, "past", 4))
    present = TensorSpec("present_key_0", np.dtype(np.float32), ("batch", 2, "total", 4))
    logits = TensorSpec("logits", np.dtype(np.float32), ("batch", "length", 9))
    found = DecoderInputs.of([*inputs, cache], [logits, present])
    first = found.prompt([4, 2, 8])
    assert first["past_key_0"].shape == (1, 2, 0, 4)
    assert first["position_ids"].tolist() == [[0, 1, 2]]
    filled = np.ones((1, 2, 3, 4), np.float32)
    step = found.step(7, 3, {"present_key_0": filled})
    assert step["input_ids"].tolist() == [[7]]
    assert step["position_ids"].tolist() == [[3]]
    assert step["attention_mask"].tolist() == [[1, 1, 1, 1]]
    assert step["past_key_0"] is filled


def test_caches_of_a_fixed_length_are_refused() -> None:
    ids = TensorSpec("input_ids", np.dtype(np.int64), ("batch", "length"))
    cache = TensorSpec("past_key_values.0.key", np.dtype(np.float32), (1, 2, 16, 4))
    outputs = [
        TensorSpec("logits", np.dtype(np.float32), (1, "length", 9)),
        TensorSpec("present.0.key", np.dtype(np.float32), (1, 2, 16, 4)),
    ]
    with pytest.raises(InputError, match="fixed shape"):
        DecoderInputs.of([ids, cache], outputs)
