"""Large bases are merged a tensor at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SIDE, SHARDS, LAYERS = 8192, 3, 4
MERGE = """
import resource, sys
from typer.testing import CliRunner
from qtool.cli.app import app

result = CliRunner().invoke(app, sys.argv[1:])
assert result.exit_code == 0, result.output
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_zeros(path: Path, names: list[str]) -> int:
    """Writes a file of zeros, which takes no room on the disk, and returns its length."""
    nbytes = SIDE * SIDE * 4
    header = json.dumps(
        {
            name: {"dtype": "F32", "shape": [SIDE, SIDE], "data_offsets": [place * nbytes, (place + 1) * nbytes]}
            for place, name in enumerate(names)
        }
    ).encode()
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + len(names) * nbytes)
    return path.stat().st_size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from the kernel")
def test_three_gigabytes_take_less_than_a_shard_and_half_a_gigabyte(tmp_path: Path) -> None:
    places, largest = {}, 0
    for shard in range(SHARDS):
        names = [f"layer{shard}.{number}.weight" for number in range(LAYERS)]
        largest = max(largest, write_zeros(tmp_path / f"part{shard}.safetensors", names))
        places |= dict.fromkeys(names, f"part{shard}.safetensors")
    (tmp_path / "base.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    tensors = {}
    for name in places:
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{module}.lora_A.weight": torch.ones(4, SIDE), f"{module}.lora_B.weight": torch.ones(SIDE, 4)}
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    arguments = ("merge-lora", "base.safetensors.index.json", "adapter", "-o", "out.safetensors.index.json", "--quiet")
    result = subprocess.run(
        [sys.executable, "-c", MERGE, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(result.stdout.split()[-1]) < largest + 500_000_000
