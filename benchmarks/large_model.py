"""Measures what `qtool convert` and `qtool inspect` take of memory for a model of several gigabytes.

The weights are random. Resident memory is what counts: private memory, and pages of the files that are mapped, which
the system drops when it needs them for something else. Linux only, which tells them in /proc.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

_WIDTH = 8192
_LAYER_BYTES = _WIDTH * _WIDTH * 4
_POLL_SECONDS = 0.02


def write_model(folder: Path, layers: int) -> Path:
    """Writes a chain of MatMul and Tanh of 268 MB each, with its weights in one external file."""
    path, random = folder / "large.onnx", np.random.default_rng(0)
    weights, nodes, last = [], [], "x"
    with (folder / "large.onnx.data").open("wb") as stream:
        for layer in range(layers):
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[_WIDTH, _WIDTH])
            weight.data_location = TensorProto.EXTERNAL
            place = {"location": "large.onnx.data", "offset": layer * _LAYER_BYTES, "length": _LAYER_BYTES}
            for key, value in place.items():
                weight.external_data.add(key=key, value=str(value))
            weights.append(weight)
            for _ in range(8):
                part = random.standard_normal((_WIDTH // 8, _WIDTH), dtype=np.float32)
                stream.write((part / np.float32(np.sqrt(_WIDTH))).tobytes())
            nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"], name=f"matmul{layer}"))
            nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"y{layer}"], name=f"tanh{layer}"))
            last = f"y{layer}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", _WIDTH]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def write_weights(model: Path, layers: int) -> Path:
    """Writes the weights of the model once more, as ``.safetensors``."""
    path = model.with_suffix(".safetensors")
    fields = {
        f"w{layer}": {
            "dtype": "F32",
            "shape": [_WIDTH, _WIDTH],
            "data_offsets": [layer * _LAYER_BYTES, (layer + 1) * _LAYER_BYTES],
        }
        for layer in range(layers)
    }
    header = json.dumps(fields).encode()
    with path.open("wb") as stream, model.with_name(f"{model.name}.data").open("rb") as data:
        stream.write(len(header).to_bytes(8, "little") + header)
        shutil.copyfileobj(data, stream, 1 << 24)
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a command took.

    Attributes:
        private_mb: the most private memory.
        mapped_mb: the most pages of files.
        resident_mb: the most of both together.
        seconds: from start to end.
    """

    private_mb: float
    mapped_mb: float
    resident_mb: float
    seconds: float


def measure(command: list[str]) -> Taken:
    """Runs ``qtool`` and watches its memory."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "qtool", *command, "--quiet"])
    peaks = {"RssAnon": 0, "RssFile": 0, "VmHWM": 0}
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            break
        for kind, value in re.findall(r"(RssAnon|RssFile|VmHWM):\s+(\d+) kB", status):
            peaks[kind] = max(peaks[kind], int(value) * 1024)
        time.sleep(_POLL_SECONDS)
    if process.wait():
        sys.exit(f"qtool {command[0]} failed")
    private, mapped, resident = (peaks[kind] / 1e6 for kind in ("RssAnon", "RssFile", "VmHWM"))
    seconds = time.perf_counter() - begun
    return Taken(private_mb=private, mapped_mb=mapped, resident_mb=resident, seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="layers of 268 MB each; default 12, which are 3.2 GB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder, arguments.layers)
        weights, torch_file = write_weights(model, arguments.layers), str(folder / "result.pth")
        result = ["-o", str(folder / "result.onnx"), "--force"]
        commands = {
            "inspect": ["inspect", str(model)],
            "inspect weights": ["inspect", str(weights)],
            "to opset 18": ["convert", str(model), "--opset", "18", *result],
            "to shards": ["convert", str(model), "--external-data", "--max-shard-mb", "600", *result],
            "to float16": ["convert", str(model), "--fp16", *result],
            "to bfloat16": ["convert", str(model), "--bf16", *result],
            "to .pth": ["convert", str(weights), "--to", "pth", "-o", torch_file],
            "inspect .pth": ["inspect", torch_file],
            "from .pth": ["convert", torch_file, "--to", "safetensors", "-o", str(folder / "again.safetensors")],
        }
        print(f"{arguments.layers} weights of {_LAYER_BYTES / 1e6:.0f} MB")
        for what, command in commands.items():
            taken = measure(command)
            parts = f"at most {taken.private_mb:.0f} MB private, {taken.mapped_mb:.0f} MB of files"
            print(f"{what:15} {taken.resident_mb:6.0f} MB resident; {parts}; {taken.seconds:5.1f} s")


if __name__ == "__main__":
    main()
