"""The memory that rounding weights takes, also of a decoder of 3 GB, which takes some five minutes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

_GB = 1e9


def _write_decoder(folder: Path, *, layers: int, width: int, inner: int, vocabulary: int) -> int:
    """Writes net.onnx with weights in net.onnx.data, and tokens.npz; returns the bytes of the largest weight."""
    generator = np.random.default_rng(0)
    nodes, initializers, place, largest = [], [], 0, 0
    with (folder / "net.onnx.data").open("wb") as file:

        def weight(name: str, *shape: int) -> str:
            nonlocal place, largest
            array = generator.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0]))
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "net.onnx.data"), ("offset", place), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(array.tobytes())
            place, largest = place + array.nbytes, max(largest, array.nbytes)
            initializers.append(tensor)
            return name

        def node(operator: str, output: str, *inputs: str) -> str:
            nodes.append(helper.make_node(operator, list(inputs), [output], name=f"/{output}"))
            return output

        initializers.append(helper.make_tensor("gain", TensorProto.FLOAT, [width], np.ones(width, np.float32)))
        x = node("Gather", "x", weight("table", vocabulary, width), "input_ids")
        for number in range(layers):
            normed = node("LayerNormalization", f"{number}.normed", x, "gain")
            mixed = node("MatMul", f"{number}.mixed", normed, weight(f"{number}.v", width, width))
            x = node(
                "Add", f"{number}.sum", x, node("MatMul", f"{number}.o", mixed, weight(f"{number}.wo", width, width))
            )
            normed = node("LayerNormalization", f"{number}.normed2", x, "gain")
            gate = node("MatMul", f"{number}.gate", normed, weight(f"{number}.wg", width, inner))
            up = node("MatMul", f"{number}.up", normed, weight(f"{number}.wu", width, inner))
            product = node("Mul", f"{number}.product", node("Sigmoid", f"{number}.half", gate), up)
            down = node("MatMul", f"{number}.down", product, weight(f"{number}.wd", inner, width))
            x = node("Add", f"{number}.out", x, down)
        node("MatMul", "logits", node("LayerNormalization", "last", x, "gain"), weight("head", width, vocabulary))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "t", vocabulary])],
        initializers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    np.savez(folder / "tokens.npz", input_ids=generator.integers(0, vocabulary, (12, 48)))
    return largest


def _peak_of(folder: Path, *options: str) -> tuple[float, str]:
    """Quantizes net.onnx, and returns the most memory that is no mapped file, in bytes, and what was told."""
    command = [sys.executable, "-m", "qtool", "quantize", "net.onnx", "--calib-data", "tokens.npz"]
    command += ["--scheme", "weights", "--block-size", "128", "--accuracy-level", "0", *options, "-o", "small.onnx"]
    peak = 0
    with (folder / "told.txt").open("wb") as told:
        process = subprocess.Popen(command, cwd=folder, stdout=told, stderr=subprocess.STDOUT)
        while process.poll() is None:
            found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8"))
            peak = max(peak, 0 if found is None else int(found[1]) * 1024)
            time.sleep(0.02)
    text = (folder / "told.txt").read_text(encoding="utf-8")
    assert process.returncode == 0, text
    return peak, text


def _told_bytes(text: str) -> float:
    found = re.search(r"rounding takes about ([\d.]+) GB of memory", text)
    assert found is not None, text
    return float(found[1]) * _GB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_memory_is_told_before(tmp_path: Path) -> None:
    _write_decoder(tmp_path, layers=1, width=256, inner=768, vocabulary=4096)
    peak, told = _peak_of(tmp_path, "--weight-method", "gptq")
    assert peak <= _told_bytes(told)
    assert len(onnx.load(tmp_path / "small.onnx").graph.node) == 14


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_large_decoder_is_rounded_a_few_layers_at_a_time(tmp_path: Path) -> None:
    largest = _write_decoder(tmp_path, layers=14, width=2048, inner=5632, vocabulary=32_000)
    assert (tmp_path / "net.onnx.data").stat().st_size > 2.9 * _GB
    peak, told = _peak_of(tmp_path, "--weight-method", "gptq")
    assert peak < largest + 1.5 * _GB
    assert peak <= _told_bytes(told)
    assert (tmp_path / "small.onnx").stat().st_size < 0.5 * _GB
