from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="text takes the package tokenizers")

from qtool.runtime.session import Session
from tests.llm_report.tiny_llama import VOCABULARY, WORDS, decoder, random_weights, write_folder

ROWS, LENGTH = 12, 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A decoder folder."""
    return write_folder(tmp_path / "float", random_weights())


@pytest.fixture(scope="session")
def said() -> str:
    """What the model itself says when its words are drawn: 12 rows of 32 words, and some more."""
    random = np.random.default_rng(3)
    session = Session(decoder(random_weights(), cache=False).SerializeToString())
    rows = random.integers(3, VOCABULARY, size=(ROWS, 1))
    for _ in range(LENGTH - 1):
        logits = session.run({"input_ids": rows})["logits"][:, -1].astype(np.float64)
        # Words that only mark something have no place in a text.
        logits[:, :3] = -np.inf
        drawn = (logits + random.gumbel(size=logits.shape)).argmax(1)
        rows = np.concatenate([rows, drawn[:, np.newaxis]], axis=1)
    lines = [" ".join(WORDS[token] for token in row) for row in rows]
    return "\n".join([*lines, "the model of the layer\n"])


@pytest.fixture
def text(tmp_path: Path, said: str) -> Path:
    """A text of 389 words."""
    path = tmp_path / "text.txt"
    path.write_text(said, encoding="utf-8")
    return path
