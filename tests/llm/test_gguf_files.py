"""GGUF files as a format: what is read, told and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from qtool.formats.audit import audit
from qtool.formats.detect import detect
from qtool.formats.errors import FormatError
from qtool.formats.weights.gguf_blocks import affine_rows
from qtool.formats.weights.gguf_file import read_gguf
from qtool.formats.weights.gguf_header import BLOCK_TYPES, read_gguf_header
from tests.llm.gguf_files import Raw, dequantized, f32, q4_0, q4_1, q8_0, write_gguf

_QUANTIZERS: dict[str, Callable[[np.ndarray], Raw]] = {"Q4_0": q4_0, "Q4_1": q4_1, "Q8_0": q8_0}
_FIELDS = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "tokenizer.ggml.tokens": ["a", "b"],
    "flags": [True],
}


def _matrix(rows: int = 6, columns: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = {name: quantize(_matrix()) for name, quantize in _QUANTIZERS.items()}
    return write_gguf(tmp_path / "model.gguf", _FIELDS, {**tensors, "F32": f32(_matrix())})


@pytest.mark.parametrize("kind", _QUANTIZERS)
def test_blocks_are_the_numbers_that_their_format_says(tmp_path: Path, kind: str) -> None:
    stored = _QUANTIZERS[kind](_matrix())
    path = write_gguf(tmp_path / "model.gguf", _FIELDS, {"w": stored})
    found = read_gguf(path).tensors["w"].numpy()
    np.testing.assert_array_equal(found, dequantized(stored))
    assert 1e-3 < np.abs(found - _matrix()).max() < 0.4
    (entry,) = read_gguf_header(path).entries
    rows = affine_rows(path, entry)
    assert (rows.bits, rows.integers.shape, rows.scales.shape) == (8 if kind == "Q8_0" else 4, (6, 64), (6, 2))


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q5_0"])
def test_other_types_are_read_with_the_package_gguf(tmp_path: Path, kind: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    number = next(number for number, known in BLOCK_TYPES.items() if known.name == kind)
    raw = np.random.default_rng(1).integers(0, 60, (4, 2 * BLOCK_TYPES[number].nbytes), dtype=np.uint8)
    shape = (4, 2 * BLOCK_TYPES[number].elements)
    path = write_gguf(tmp_path / "model.gguf", _FIELDS, {"w": (number, shape, raw.tobytes())})
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(read_gguf(path).tensors["w"].numpy(), expected)


def test_the_sizes_of_blocks_are_those_of_the_package_gguf() -> None:
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    for number, known in BLOCK_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (known.name, known.elements, known.nbytes)


def test_inspect_shows_the_types_that_are_stored(run: Any, file: Path) -> None:
    found = run("inspect", file, "--json").json
    assert found["kind"] == "GGUF 3, llama"
    assert {row["name"]: row["dtype"] for row in found["largest"]} == {
        name: name for name in ("Q4_0", "Q4_1", "Q8_0", "F32")
    }
    assert found["metadata"]["general.architecture"] == "llama"


def test_weights_become_safetensors(run: Any, file: Path) -> None:
    assert run("convert", file, "--to", "safetensors", "-o", "model.safetensors").code == 0
    found = load_file("model.safetensors")
    np.testing.assert_array_equal(found["Q4_1"], dequantized(q4_1(_matrix())))


def test_cut_and_flipped_files_end_in_one_kind_of_error(file: Path) -> None:
    whole = file.read_bytes()
    draws = np.random.default_rng(2)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[int(draws.integers(len(whole) // 3))] ^= 1 << int(draws.integers(8))
        file.write_bytes(damaged[: int(draws.integers(1, len(whole)))] if draws.random() < 0.3 else damaged)
        try:
            audit(file)
            detect(file)
            for name in (tensors := read_gguf(file).tensors):
                assert tensors[name].numel() >= 0
        except FormatError:
            refused += 1
    assert 20 < refused < 300


@pytest.mark.parametrize(
    ("shape", "problem"),
    [((2, 48), "does not fit"), ((1 << 40, 64), "does not fit"), ((1 << 60, 1 << 60, 32), "does not fit")],
)
def test_tensors_that_the_file_cannot_hold_are_refused(tmp_path: Path, shape: tuple[int, ...], problem: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", _FIELDS, {"w": (2, shape, bytes(72))})
    with pytest.raises(FormatError, match=problem):
        detect(path)
    assert [finding.where for finding in audit(path).findings] == ["header"]
