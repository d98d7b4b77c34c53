"""Large bases are merged a tensor at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SIDE, SHARDS, LAYERS = 8192, 4, 3
LORA = {"lora_A.weight": (4, SIDE), "lora_B.weight": (SIDE, 4)}
LOHA = {"hada_w1_a": (SIDE, 4), "hada_w1_b": (4, SIDE), "hada_w2_a": (SIDE, 4), "hada_w2_b": (4, SIDE)}
LOKR = {"lokr_w1": (64, 64), "lokr_w2_a": (SIDE // 64, 4), "lokr_w2_b": (4, SIDE // 64)}
OFT = {"oft_R.weight": (SIDE // 32, 32 * 31 // 2)}
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


def adapter_of(folder: Path, settings: dict[str, object], shard: str, parts: dict[str, tuple[int, ...]]) -> Path:
    """Writes an adapter for the layers of one file."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {
        f"base_model.model.{shard}.{layer}.{name}": torch.full(shape, 0.01)
        for layer in range(LAYERS)
        for name, shape in parts.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from the kernel")
def test_three_gigabytes_take_less_than_a_shard_and_half_a_gigabyte(tmp_path: Path) -> None:
    places, largest = {}, 0
    for shard in range(SHARDS):
        names = [f"layer{shard}.{number}.weight" for number in range(LAYERS)]
        largest = max(largest, write_zeros(tmp_path / f"part{shard}.safetensors", names))
        places |= dict.fromkeys(names, f"part{shard}.safetensors")
    (tmp_path / "base.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    adapters = {
        "lora": adapter_of(tmp_path / "lora", {"peft_type": "LORA", "r": 4, "lora_alpha": 4}, "layer0", LORA),
        "loha": adapter_of(tmp_path / "loha", {"peft_type": "LOHA", "r": 4, "alpha": 4}, "layer1", LOHA),
        "lokr": adapter_of(tmp_path / "lokr", {"peft_type": "LOKR", "r": 4, "alpha": 4}, "layer2", LOKR),
        "oft": adapter_of(tmp_path / "oft", {"peft_type": "OFT"}, "layer3", OFT),
    }
    arguments = ("merge-lora", "base.safetensors.index.json", *adapters, "-o", "out.safetensors.index.json", "--quiet")
    result = subprocess.run(
        [sys.executable, "-c", MERGE, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(result.stdout.split()[-1]) < largest + 500_000_000
    assert len(list(tmp_path.glob("out-*.safetensors"))) == SHARDS
