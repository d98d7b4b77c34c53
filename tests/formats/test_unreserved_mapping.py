"""Weights larger than memory and swap are mapped all the same."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qtool.formats.torch.torch_checkpoint import TorchCheckpoint
from qtool.formats.weights.safetensors_tensors import read_tensors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems reserve no memory for files")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes torch's own mappings fail, and lists their bytes."""
    seen: list[int] = []

    def from_file(filename: str, shared: bool, nbytes: int) -> Any:
        seen.append(nbytes)
        raise RuntimeError(f"unable to mmap {nbytes} bytes from file <{filename}>: Cannot allocate memory (12)")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", from_file)
    return seen


@pytest.mark.skipif(
    Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2", reason="the system reserves for every mapping"
)
def test_a_file_larger_than_memory_and_swap_is_read(tmp_path: Path) -> None:
    known = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    memory = sum(int(known[name].split()[0]) << 10 for name in ("MemTotal", "SwapTotal"))
    rows = memory // 4096 + (1 << 18)
    path = tmp_path / "large.safetensors"
    fields = {
        "table": {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, rows * 4096]},
        "bias": {"dtype": "F32", "shape": [2], "data_offsets": [rows * 4096, rows * 4096 + 8]},
    }
    header = json.dumps(fields).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        # A hole takes no room on the disk.
        file.seek(rows * 4096, os.SEEK_CUR)
        file.write(np.asarray([1.5, 2.5], np.float32).tobytes())
    weights = read_tensors(path)
    assert weights.tensors["table"].shape == (rows, 1024)
    assert not weights.tensors["table"][-1].any()
    assert weights.tensors["bias"].tolist() == [1.5, 2.5]


def test_tensors_can_be_written_to_and_files_stay_as_they_are(tmp_path: Path, refused: list[int]) -> None:
    stored = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(3, dtype=torch.bfloat16)}
    save_file(stored, tmp_path / "net.safetensors")
    torch.save(stored, tmp_path / "net.pth")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for tensors in (
        read_tensors(tmp_path / "net.safetensors").tensors,
        TorchCheckpoint().read(tmp_path / "net.pth").tensors,
    ):
        assert all(torch.equal(tensors[name], tensor) for name, tensor in stored.items())
        tensors["weight"][0] = 7.0
        assert tensors["weight"][0].tolist() == [7.0] * 3
    assert set(refused) == {len(content) for content in before.values()}
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_torch_maps_as_before_afterwards(tmp_path: Path) -> None:
    own = torch.UntypedStorage.from_file
    save_file({"weight": torch.ones(3)}, tmp_path / "net.safetensors")
    read_tensors(tmp_path / "net.safetensors")
    assert torch.UntypedStorage.from_file is own
