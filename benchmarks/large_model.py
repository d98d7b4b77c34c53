"""Measures what commands take of memory and time for a model of several gigabytes, and how time grows with a model.

The weights are random. Resident memory is what counts: private memory, and pages of the files that are mapped, which
the system drops when it needs them for something else. Private memory is limited to 2 GB and the largest tensor, unless
a control group, such as that of ``systemd-run -p MemoryMax=2162M``, limits both together. Linux only, which tells them
in /proc.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from qtool.runtime.available_memory import available_bytes

_WIDTH = 8192
_LAYER_BYTES = _WIDTH * _WIDTH * 4
_POLL_SECONDS = 0.02
_LIMIT_BYTES = 2 * 10**9 + _LAYER_BYTES
# Sizes that grow, each twice the one before. Models of less than 2 GB are other ones: their weights in 8 bits are
# unpacked as they are opened.
_LAYERS, _NODES, _SAMPLES = (8, 16, 32), (6_250, 12_500, 25_000, 50_000), (256, 512, 1024, 2048)
_SMALLEST = 4


def write_model(folder: Path, layers: int) -> Path:
    """Writes a chain of MatMul and Tanh of 268 MB each, with its weights in one external file."""
    path, random = folder / "large.onnx", np.random.default_rng(0)
    weights, nodes, last = [], [], "x"
    with (folder / "large.onnx.data").open("wb") as stream:
        for layer in range(layers):
            weight = TensorProto(name=f"onnx::MatMul_{layer}", data_type=TensorProto.FLOAT, dims=[_WIDTH, _WIDTH])
            weight.data_location = TensorProto.EXTERNAL
            place = {"location": "large.onnx.data", "offset": layer * _LAYER_BYTES, "length": _LAYER_BYTES}
            for key, value in place.items():
                weight.external_data.add(key=key, value=str(value))
            weights.append(weight)
            for _ in range(8):
                part = random.standard_normal((_WIDTH // 8, _WIDTH), dtype=np.float32)
                stream.write((part / np.float32(np.sqrt(_WIDTH))).tobytes())
            nodes.append(
                helper.make_node("MatMul", [last, f"onnx::MatMul_{layer}"], [f"m{layer}"], name=f"/layer{layer}/MatMul")
            )
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


def measure(command: list[str], *, limited: bool = True) -> Taken:
    """Runs ``qtool`` and watches its memory, with a limit on what is private to it."""
    free = available_bytes()
    grouped = free is not None and free <= _LIMIT_BYTES

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT_BYTES, _LIMIT_BYTES))

    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "qtool", *command, "--quiet"], preexec_fn=limit if limited and not grouped else None
    )
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


def write_adapter(folder: Path, layers: int) -> Path:
    """Writes a LoRA of rank 4 for every layer."""
    adapter, random = folder / "adapter", np.random.default_rng(1)
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    pairs = {
        f"base_model.model.layer{layer}.lora_{side}.weight": random.standard_normal(shape).astype(np.float32) * 0.01
        for layer in range(layers)
        for side, shape in (("A", (4, _WIDTH)), ("B", (_WIDTH, 4)))
    }
    save_file(pairs, adapter / "adapter_model.safetensors")
    return adapter


def print_growth(folder: Path) -> None:
    """Prints times for models and data of twice the size, and the exponent: 1 is linear, 2 is square.

    The exponent is the slope of the seconds over the sizes, both as logarithms, without what the smallest run takes.
    """
    print(f"{'what grows':28} {'from':>9} {'to':>9} {'exponent':>9}  seconds")
    for what, sizes, command_of, smallest_of in (
        ("bytes, weights of 8 bits", _LAYERS, _bytes_command, _blocks_command),
        ("nodes, dynamic", _NODES, _nodes_command, _nodes_command),
        ("nodes, weights of 8 bits", _NODES, _blocks_command, _blocks_command),
        ("nodes, inspect", _NODES, _inspect_command, _inspect_command),
        ("nodes, verify", _NODES, _verify_command, _verify_command),
        ("nodes, diff", _NODES, _diff_command, _diff_command),
        ("samples, calibration", _SAMPLES, _samples_command, _samples_command),
    ):
        start = measure(smallest_of(folder, _SMALLEST), limited=False).seconds
        seconds = [measure(command_of(folder, size), limited=False).seconds for size in sizes]
        growth = np.polyfit(np.log(sizes), np.log([one - start for one in seconds]), 1)[0]
        told = " ".join(f"{one:.1f}" for one in seconds)
        print(f"{what:28} {sizes[0]:9} {sizes[-1]:9} {growth:9.2f}  {told}", flush=True)


def _bytes_command(folder: Path, layers: int) -> list[str]:
    model = write_model(folder, layers)
    return ["quantize", str(model), "--scheme", "weights", "--bits", "8", "-o", str(folder / "grown.onnx"), "--force"]


def _nodes_command(folder: Path, nodes: int) -> list[str]:
    model = _write_chain(folder, nodes)
    return ["quantize", str(model), "--scheme", "dynamic", "-o", str(folder / "c.onnx"), "--force"]


def _blocks_command(folder: Path, nodes: int) -> list[str]:
    model = _write_chain(folder, nodes)
    return ["quantize", str(model), "--scheme", "weights", "--bits", "8", "-o", str(folder / "c.onnx"), "--force"]


def _inspect_command(folder: Path, nodes: int) -> list[str]:
    return ["inspect", str(_write_chain(folder, nodes))]


def _verify_command(folder: Path, nodes: int) -> list[str]:
    return ["verify", str(_write_chain(folder, nodes))]


def _diff_command(folder: Path, nodes: int) -> list[str]:
    model = _write_chain(folder, nodes)
    return ["diff", str(model), str(model)]


def _samples_command(folder: Path, samples: int) -> list[str]:
    model, data = _write_chain(folder, 400), folder / "samples.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((samples, 16), np.float32))
    return ["calibrate", str(model), "--calib-data", str(data), "-o", str(folder / "stats.npz"), "--force"]


def _write_chain(folder: Path, nodes: int) -> Path:
    """Writes a residual network of small layers, of four nodes each."""
    random, weights, made, last, layers = np.random.default_rng(0), [], [], "x", nodes // 4
    for layer in range(layers):
        # Values stay of one magnitude however many layers there are.
        weight = random.standard_normal((16, 16), np.float32) / np.float32(layers)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        weights.append(numpy_helper.from_array(np.zeros(16, np.float32), f"b{layer}"))
        for operator, inputs, output in (
            ("MatMul", (last, f"w{layer}"), f"m{layer}"),
            ("Add", (f"m{layer}", f"b{layer}"), f"a{layer}"),
            ("Relu", (f"a{layer}",), f"r{layer}"),
            ("Add", (last, f"r{layer}"), f"s{layer}"),
        ):
            made.append(helper.make_node(operator, list(inputs), [output], name=output))
        last = f"s{layer}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16]) for name in ("x", last)]
    graph = helper.make_graph(made, "chain", ends[:1], ends[1:], weights)
    path = folder / "chain.onnx"
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="layers of 268 MB each; default 12, which are 3.2 GB")
    parser.add_argument(
        "--growth", action="store_true", help="show how time grows with bytes, nodes and samples instead"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.growth:
            print_growth(folder)
            return
        model = write_model(folder, arguments.layers)
        np.savez(folder / "x.npz", x=np.random.default_rng(0).standard_normal((1, _WIDTH), np.float32))
        begun = time.perf_counter()
        shutil.copyfile(f"{model}.data", folder / "copy")
        (folder / "copy").unlink()
        copied_s = time.perf_counter() - begun
        print(f"{arguments.layers} weights of {_LAYER_BYTES / 1e6:.0f} MB; copied in {copied_s:.1f} s", flush=True)
        commands = _commands(folder, model, arguments.layers)
        for place, (what, command) in enumerate(commands):
            taken = measure(command)
            parts = f"at most {taken.private_mb:.0f} MB private, {taken.mapped_mb:.0f} MB of files"
            print(f"{what:15} {taken.resident_mb:6.0f} MB resident; {parts}; {taken.seconds:5.1f} s", flush=True)
            _remove_unneeded(folder, [argument for _, later in commands[place + 1 :] for argument in later])


def _commands(folder: Path, model: Path, layers: int) -> list[tuple[str, list[str]]]:
    """Returns the commands in order, each with what the table calls it; results are named after what made them."""

    def result(name: str) -> list[str]:
        return ["-o", str(folder / name)]

    weights, adapter = str(write_weights(model, layers)), str(write_adapter(folder, layers))
    graph, data, stats = str(model), str(folder / "x.npz"), str(folder / "statistics.npz")
    torch_file, dynamic, eight = str(folder / "torch.pth"), str(folder / "dynamic.onnx"), str(folder / "eight.onnx")
    return [
        ("inspect", ["inspect", graph]),
        ("inspect weights", ["inspect", weights]),
        ("to .pth", ["convert", weights, "--to", "pth", "-o", torch_file]),
        ("inspect .pth", ["inspect", torch_file]),
        ("from .pth", ["convert", torch_file, "--to", "safetensors", *result("again.safetensors")]),
        ("verify", ["verify", graph]),
        ("to opset 18", ["convert", graph, "--opset", "18", *result("opset.onnx")]),
        ("to shards", ["convert", graph, "--external-data", "--max-shard-mb", "600", *result("shards.onnx")]),
        ("to float16", ["convert", graph, "--fp16", *result("half.onnx")]),
        ("to bfloat16", ["convert", graph, "--bf16", *result("brain.onnx")]),
        ("merge-lora", ["merge-lora", graph, adapter, *result("merged.onnx")]),
        ("calibrate", ["calibrate", graph, "--calib-data", data, "-o", stats]),
        ("static", ["quantize", graph, "--calib-stats", stats, *result("static.onnx")]),
        ("dynamic", ["quantize", graph, "--scheme", "dynamic", "-o", dynamic]),
        ("verify dynamic", ["verify", dynamic]),
        ("8-bit weights", ["quantize", graph, "--scheme", "weights", "--bits", "8", "-o", eight]),
        ("report", ["report", graph, eight, "--data", data]),
        ("4-bit weights", ["quantize", graph, "--scheme", "weights", "--bits", "4", *result("four.onnx")]),
    ]


def _remove_unneeded(folder: Path, later: list[str]) -> None:
    """Removes the files that no later command names, whether whole or as a part of several: disks are small, too."""
    for path in folder.iterdir():
        own = path.name.split(".")[0]
        if path.is_file() and not any(Path(argument).name.split(".")[0] == own for argument in later):
            path.unlink()


if __name__ == "__main__":
    main()
