from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tokenizers", reason="text takes the package tokenizers")

from tests.llm_report.tiny_llama import random_text, random_weights, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A decoder folder."""
    return write_folder(tmp_path / "float", random_weights())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 400 words."""
    path = tmp_path / "text.txt"
    path.write_text(random_text(400), encoding="utf-8")
    return path
