"""Decoders that are converted once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from qtool.workflows.convert.convert import convert
from qtool.workflows.convert.request import ConvertReport, ConvertRequest
from qtool.workflows.convert.target_format import TargetFormat


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, ConvertReport]]:
    """Returns the folder of transformers, the decoder folder made of it, and the report, for the name of a kind."""
    needed = ("transformers", "tokenizers", "onnxruntime_genai")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)} (the extra llm)")
    from tests.llm.tiny_decoders import save_decoder

    known: dict[str, tuple[Path, Path, ConvertReport]] = {}

    def call(kind: str) -> tuple[Path, Path, ConvertReport]:
        if kind not in known:
            place = tmp_path_factory.mktemp("decoder")
            source = save_decoder(place / "source", kind)
            report = convert(ConvertRequest(source=source, target=TargetFormat.ONNX, output=place / "made"))
            known[kind] = (source, place / "made", report)
        return known[kind]

    return call
