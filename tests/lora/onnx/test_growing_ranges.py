"""How far ranges of activations grow with a merge, on graphs made by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from qtool.calib.affine import Range
from qtool.calib.grid import Grid
from qtool.lora.onnx.activation_ranges import QuantizedActivation, grown, growth, sharing
from tests.lora.conftest import invoke
from tests.lora.graphs import scales_of


# One layer between integers: x of (n, 4), y of (n, 4); the second grid shares the scale of the first where it is told.
def qdq(path: Path, *, reshape: bool = False, shared: bool = False) -> Path:
    weight = np.eye(4, dtype=np.float32) + 0.5
    step = np.float32(np.abs(weight).max() / 127)
    stored = {
        "w": np.rint(weight / step).astype(np.int8),
        "w_scale": np.asarray(step),
        "b": np.asarray([1, -2, 3, 1], np.int32),
        "b_scale": np.asarray(step * np.float32(0.03)),
        "h_scale": np.asarray(0.03, np.float32),
        "h_zero": np.asarray(128, np.uint8),
        "y_scale": np.asarray(0.05, np.float32),
        "up": np.eye(4, dtype=np.float32),
        "shape": np.asarray([-1, 3, 4], np.int64),
    }
    last = "h_scale" if shared else "y_scale"
    first = [helper.make_node("Reshape", ["x", "shape"], ["x3"])] if reshape else []
    nodes = [
        *first,
        helper.make_node("MatMul", ["x3" if reshape else "x", "up"], ["h"], name="up"),
        *([helper.make_node("Reshape", ["h", "flat"], ["h2"])] if reshape else []),
        helper.make_node("QuantizeLinear", ["h2" if reshape else "h", "h_scale", "h_zero"], ["hq"]),
        helper.make_node("DequantizeLinear", ["hq", "h_scale", "h_zero"], ["hd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["W"]),
        helper.make_node("DequantizeLinear", ["b", "b_scale"], ["B"]),
        helper.make_node("Gemm", ["hd", "W", "B"], ["g"], transB=1),
        helper.make_node("QuantizeLinear", ["g", last, "h_zero"], ["gq"]),
        helper.make_node("DequantizeLinear", ["gq", last, "h_zero"], ["y"]),
    ]
    stored["flat"] = np.asarray([-1, 4], np.int64)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def lora(folder: Path, factor: float) -> tuple[Path, Path]:
    """Writes weights, and an adapter that adds ``factor`` times the first layer to it."""
    folder.mkdir()
    save_file({"up.weight": torch.eye(4)}, folder / "base.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["up"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    matrices = {"lora_A": torch.eye(4), "lora_B": torch.eye(4) * factor}
    save_file(
        {f"base_model.model.up.{name}.weight": value for name, value in matrices.items()},
        folder / "adapter_model.safetensors",
    )
    return folder, folder / "base.safetensors"


@pytest.mark.parametrize(
    ("factor", "code", "said"), [(0.1, 0, None), (0.5, 0, "warning"), (0.9, 0, "warning"), (1.2, 2, "error")]
)
def test_growth_is_passed_told_or_refused(tmp_path: Path, factor: float, code: int, said: str | None) -> None:
    folder, base = lora(tmp_path / "adapter", factor)
    output = tmp_path / "merged.onnx"
    result = invoke("merge-lora", qdq(tmp_path / "g.onnx"), folder, "--base-weights", base, "-o", output)
    assert result.exit_code == code, result.output
    assert output.exists() == (code == 0)
    assert (said is None) == ("its range" not in result.stderr)
    if said is not None:
        assert f"{said}: " in result.stderr
        times = re.search(r"reaches ([0-9.]+) times its range", " ".join(result.stderr.split()))
        assert times
        assert float(times[1]) == pytest.approx(1 + factor, abs=0.02)


@pytest.mark.parametrize("shared", [False, True])
def test_biases_and_grids_of_one_scale_follow(tmp_path: Path, merge_graph: Any, shared: bool) -> None:
    graph = qdq(tmp_path / "g.onnx", shared=shared)
    folder, base = lora(tmp_path / "adapter", 3.0)
    x = np.random.default_rng(0).uniform(-3, 3, (16, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    merged = merge_graph(graph, folder, "--base-weights", base, "--calib-data", tmp_path / "x.npz")
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (graph, merged)
    )
    for name in before:
        assert after[name].shape == before[name].shape
        assert after[name].dtype == before[name].dtype
    exact = 4 * x @ (before["w"].T * before["w_scale"].astype(np.float64)) + before["b"] * before["b_scale"]
    reach = 127 * after["h_scale"]
    np.testing.assert_allclose(reach, max(4 * 127 * 0.03, np.abs(exact).max() if shared else 0), rtol=0.02)
    assert after["h_zero"] == before["h_zero"]
    np.testing.assert_allclose(after["b_scale"], after["h_scale"] * after["w_scale"], rtol=1e-5)
    floats = [part["b"] * part["b_scale"].astype(np.float64) for part in (before, after)]
    np.testing.assert_allclose(floats[1], floats[0], atol=after["b_scale"])
    got = onnxruntime.InferenceSession(merged, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    step = after["h_scale" if shared else "y_scale"]
    assert np.abs(got - exact).max() < step + 4 * after["h_scale"]


def test_graphs_that_do_not_run_on_random_inputs_are_told(tmp_path: Path) -> None:
    folder, base = lora(tmp_path / "adapter", 3.0)
    graph, output = qdq(tmp_path / "g.onnx", reshape=True), tmp_path / "merged.onnx"
    result = invoke("merge-lora", graph, folder, "--base-weights", base, "-o", output)
    assert result.exit_code == 0, result.output
    assert "the ranges of activations could not be checked" in " ".join(result.stderr.split())
    np.savez(tmp_path / "x.npz", x=np.ones((6, 4), np.float32))
    options = ("--calib-data", tmp_path / "x.npz", "--batch-size", 3, "-o", output, "--force")
    result = invoke("merge-lora", graph, folder, "--base-weights", base, *options)
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(scales_of(output)["h2"], 4 * 0.03, rtol=1e-5)


def test_random_inputs_look_up_rows_of_the_whole_table(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).uniform(-1, 1, (40, 4)).astype(np.float32)
    stored = {"emb": rows, "scale": np.asarray(1 / 127, np.float32), "zero": np.asarray(0, np.int8)}
    nodes = [
        helper.make_node("Gather", ["emb", "ids"], ["h"], name="emb"),
        helper.make_node("QuantizeLinear", ["h", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "t"]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "t", 4]),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "g.onnx")
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "modules_to_save": ["emb"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    changed = np.concatenate([rows[:2], 5 * rows[2:]])
    save_file({"base_model.model.emb.weight": torch.tensor(changed)}, folder / "adapter_model.safetensors")
    save_file({"emb.weight": torch.tensor(rows)}, tmp_path / "base.safetensors")
    options = ("--base-weights", tmp_path / "base.safetensors", "--dry-run")
    result = invoke("merge-lora", tmp_path / "g.onnx", folder, *options)
    assert result.exit_code == 2, result.output
    assert "times its range" in " ".join(result.stderr.split())


def test_what_shrinks_again_is_not_refused(merge_graph: Any, tmp_path: Path) -> None:
    folder, base = lora(tmp_path / "adapter", -0.75)
    merge_graph(qdq(tmp_path / "g.onnx"), folder, "--base-weights", base, "--unmerge", "--scale", 2)


ends = st.floats(0.0, 1e3, allow_nan=False, width=32)


@given(ends, ends, ends, ends, ends, ends, st.booleans())
def test_ranges_never_shrink_and_hold_what_grew(
    low: float, high: float, first: float, second: float, third: float, fourth: float, symmetric: bool
) -> None:
    high = max(high, 0.01)
    span = Range(-high, high) if symmetric else Range(-low, high)
    before, after = Range(-first, second), Range(-third, fourth)
    wider = grown(span, before, after, symmetric=symmetric, keeps_zero=False)
    assert wider.low <= span.low
    assert wider.high >= span.high
    assert growth(span, wider) >= 1
    if span.low <= before.low and before.high <= span.high:
        assert wider.low <= after.low
        assert wider.high >= after.high * (1 - 1e-9)
    if third <= first and fourth <= second:
        assert wider == span


def test_a_range_that_stands_for_a_relu_still_begins_at_zero() -> None:
    wider = grown(Range(0, 1), Range(-2, 1), Range(-8, 3), symmetric=False, keeps_zero=True)
    assert wider == Range(0, 3)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), max_size=8), st.randoms())
def test_what_reads_one_scale_has_one_range(scales: list[list[int]], order: Any) -> None:
    stored = [ir.Value(name=str(number)) for number in range(6)]
    order.shuffle(scales)
    activations = []
    for numbers in scales:
        quantize, *readers = (
            ir.node(kind, [ir.Value(name="x"), stored[number]])
            for kind, number in zip(["QuantizeLinear", *["DequantizeLinear"] * 2], numbers, strict=False)
        )
        grid, span = Grid(bits=8, signed=True, symmetric=True), Range(-1, 1)
        activations.append(QuantizedActivation(quantize=quantize, dequantizes=tuple(readers), grid=grid, span=span))
    groups = sharing(activations)
    assert sorted(number for group in groups for number in group) == list(range(len(scales)))
    used = [{number for member in group for number in scales[member]} for group in groups]
    assert sum(map(len, used)) == len(set().union(*used))
    for group in groups:
        reached = {group[0]}
        while more := {m for m in group if m not in reached and any(set(scales[m]) & set(scales[r]) for r in reached)}:
            reached |= more
        assert reached == set(group)
