"""Models that are larger than the memory go through the commands in pieces, and nothing half-written stays."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from typer.testing import CliRunner

from qtool.cli.app import app

_GB = 10**9
_WEIGHTS_ALONE = ("--scheme", "weights", "--bits", "8")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def _reads_tables_of_bytes() -> bool:
    schemas = ort.capi.onnxruntime_pybind11_state.get_all_operator_schema()
    return any(schema.name == "GatherBlockQuantized" and "bits" in schema.attributes for schema in schemas)


def write_model(folder: Path, *, layers: int, width: int, rows: int = 64) -> int:
    """Writes net.onnx, a table and a chain of products, ids.npz and an adapter; returns the bytes of the largest."""
    random, place, tensors, nodes, last = np.random.default_rng(0), 0, [], [], "x0"

    def weight(name: str, count: int) -> str:
        nonlocal place
        array = random.standard_normal((count, width), np.float32) / np.float32(np.sqrt(width))
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "net.onnx.data"), ("offset", place), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        with (folder / "net.onnx.data").open("ab") as file:
            file.write(array.tobytes())
        place += array.nbytes
        tensors.append(tensor)
        return name

    nodes.append(helper.make_node("Gather", [weight("embed.weight", rows), "ids"], ["x0"], name="/embed/Gather"))
    for layer in range(layers):
        given = [last, weight(f"onnx::MatMul_{layer}", width)]
        nodes.append(helper.make_node("MatMul", given, [f"m{layer}"], name=f"/layers.{layer}/up/MatMul"))
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"t{layer}"], name=f"/layers.{layer}/act/Tanh"))
        nodes.append(helper.make_node("Add", [last, f"t{layer}"], [f"y{layer}"], name=f"/layers.{layer}/Add"))
        last = f"y{layer}"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", "t", width])],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    np.savez(folder / "ids.npz", ids=random.integers(0, rows, (2, 4)))
    (folder / "adapter").mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    pairs = {
        f"base_model.model.layers.{layer}.up.lora_{side}.weight": random.standard_normal(shape).astype(np.float32)
        * 0.01
        for layer in range(layers)
        for side, shape in (("A", (2, width)), ("B", (width, 2)))
    }
    save_file(pairs, folder / "adapter" / "adapter_model.safetensors")
    return 4 * width * max(width, rows)


def peak_of(folder: Path, *arguments: str, limit: int | None = None) -> int:
    """Runs qtool with at most ``limit`` bytes of private memory; returns the most that was resident of it."""
    prefix = () if limit is None else ("prlimit", f"--data={limit}")
    command = [*prefix, sys.executable, "-m", "qtool", *arguments, "--quiet"]
    peak = 0
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8"))
            peak = max(peak, 0 if found is None else int(found[1]) * 1024)
            time.sleep(0.01)
    assert process.returncode == 0, (folder / "said.txt").read_text(encoding="utf-8")
    return peak


@pytest.mark.parametrize(
    "options",
    [_WEIGHTS_ALONE, ("--scheme", "dynamic"), ("--scheme", "static", "--calib-data", "ids.npz", "--effort", "fast")],
)
def test_a_model_that_runs_in_parts_becomes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    if options is _WEIGHTS_ALONE and not _reads_tables_of_bytes():
        pytest.skip(f"onnxruntime {ort.__version__} has no GatherBlockQuantized of bytes")
    write_model(tmp_path, layers=2, width=512)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qtool.runtime.hollow_graphs._SMALLEST_LEFT_OUT_BYTES", 1 << 16)
    told = []
    for name, largest in (("whole", 1 << 30), ("parts", 0)):
        monkeypatch.setattr("qtool.runtime.parts._LARGEST_WHOLE_BYTES", largest)
        monkeypatch.setattr("qtool.backends.onnxruntime_cpu.coverage._LARGEST_WITH_WEIGHTS_BYTES", largest)
        command = ["quantize", str(tmp_path / "net.onnx"), *options, "-o", str(tmp_path / f"{name}.onnx"), "--json"]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        told.append(json.loads(result.stdout))
        assert ("a part of the model at a time" in result.stderr) == (name == "parts")
    # Without onnxruntime's fusions, activations differ in their last bits, and so may their ranges.
    if "--calib-data" not in options:
        assert (tmp_path / "parts.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert told[0]["coverage"] == told[1]["coverage"]


@pytest.mark.parametrize("external", [(), ("--external-data",)])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: tuple[str, ...]
) -> None:
    write_model(tmp_path, layers=2, width=512)
    (tmp_path / "out.onnx").write_bytes(b"the old one")
    before = {path.name: path.stat().st_size for path in tmp_path.iterdir()}

    def full(tensor: ir.ExternalTensor, file: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ir.ExternalTensor, "tofile", full)
    command = [
        "convert",
        str(tmp_path / "net.onnx"),
        "-o",
        str(tmp_path / "out.onnx"),
        *external,
        "--opset",
        "22",
        "-f",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "the disk is full" in result.stderr
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == before


@pytest.mark.slow
@linux_only
def test_a_killed_run_leaves_no_half_model(tmp_path: Path) -> None:
    write_model(tmp_path, layers=24, width=1024)
    command = [sys.executable, "-m", "qtool", "quantize", "net.onnx", *_WEIGHTS_ALONE, "-o", "out.onnx", "--quiet"]
    process = subprocess.Popen(command, cwd=tmp_path)
    while process.poll() is None and not list(tmp_path.glob(".qtool-writing-*/*out.onnx*")):
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (tmp_path / "out.onnx").exists()
    peak_of(tmp_path, *command[3:-1])
    onnx.checker.check_model(str(tmp_path / "out.onnx"))
    assert not list(tmp_path.glob(".qtool-writing-*"))


@pytest.mark.slow
@linux_only
def test_three_gigabytes_fit_into_less(tmp_path: Path) -> None:
    largest = write_model(tmp_path, layers=40, width=4096, rows=16_384)
    limit = 2 * _GB + largest
    assert (tmp_path / "net.onnx.data").stat().st_size > 2.9 * _GB
    stored = ("--calib-stats", "stats.npz")
    for arguments in (
        ("inspect", "net.onnx"),
        ("verify", "net.onnx"),
        ("convert", "net.onnx", "--opset", "22", "-o", "out.onnx"),
        ("calibrate", "net.onnx", "--calib-data", "ids.npz", "-o", "stats.npz"),
        ("quantize", "net.onnx", *stored, "-o", "static.onnx"),
        ("quantize", "net.onnx", "--scheme", "dynamic", "-o", "dynamic.onnx"),
        ("verify", "dynamic.onnx"),
        ("quantize", "net.onnx", *_WEIGHTS_ALONE, "-o", "eight.onnx"),
        ("report", "net.onnx", "eight.onnx", "--data", "ids.npz"),
        ("merge-lora", "net.onnx", "adapter", "-o", "merged.onnx"),
    ):
        assert peak_of(tmp_path, *arguments, limit=limit) < limit, arguments
