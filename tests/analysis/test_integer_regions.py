from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def quantize(run: Any, network: Path, data: Path) -> Any:
    """Quantizes the network and returns the analysis of the result."""

    def call(facts: Any, *options: str) -> Any:
        made = run(
            "quantize", "net.onnx", "--calib-data", "data.npz", "--effort", "fast", "-o", "q.onnx", "--force", *options
        )
        assert made.code == 0, made.err
        return facts("q.onnx", "--partition")["partition"]

    return call


def test_a_float_model_has_no_integers(facts: Any, network: Path) -> None:
    partition = facts("net.onnx", "--partition")["partition"]
    assert (partition["regions"], partition["borders"]) == ([], [])
    assert partition["integer_multiply_adds"] == 0
    assert partition["multiply_adds"] > 0


def test_a_quantized_model_is_one_region_between_two_borders(facts: Any, quantize: Any) -> None:
    partition = quantize(facts)
    (region,) = partition["regions"]
    assert region["operators"]["QLinearConv"] == 3
    assert partition["integer_multiply_adds"] == partition["multiply_adds"] == 64 * 8 * 102 + 40
    first = partition["borders"][0]
    assert (first["direction"], first["tensor"], first["elements"]) == ("to integers", "image", 3 * 64)
    assert partition["converted_elements"] == sum(border["elements"] for border in partition["borders"])


def test_a_layer_in_float_costs_conversions(facts: Any, quantize: Any) -> None:
    whole = quantize(facts)
    parted = quantize(facts, "--exclude", "n_c2")
    assert parted["float_operators"]["Conv"] == 1
    assert len(parted["borders"]) > len(whole["borders"])
    around = {border["direction"]: border for border in parted["borders"] if border["tensor"][:2] in ("r1", "c2")}
    assert around["to float"]["elements"] == around["to integers"]["elements"] == 8 * 64
    assert parted["integer_multiply_adds"] == 64 * 8 * 30 + 40


def test_a_kernel_that_quantizes_as_it_runs_is_its_own_border(run: Any, facts: Any, network: Path) -> None:
    made = run("quantize", "net.onnx", "--scheme", "dynamic", "-o", "q.onnx")
    assert made.code == 0, made.err
    partition = facts("q.onnx", "--partition")["partition"]
    assert [region["operators"] for region in partition["regions"]] == [{"DynamicQuantizeMatMul": 1}]
    (border,) = partition["borders"]
    assert (border["direction"], border["elements"], border["before"]) == ("to integers", 8, [border["node"]])


def test_moving_integers_is_part_of_their_region(facts: Any, save: Any) -> None:
    save(
        "moved.onnx",
        """moved (float[1,2,4,4] x) => (float[1,2,2,2] y) {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (d)
            p = QuantizeLinear (m, s, z)
            y = DequantizeLinear (p, s, z)
        }""",
        s=np.float32(0.1),
        z=np.uint8(100),
    )
    partition = facts("moved.onnx", "--partition")["partition"]
    assert [region["operators"] for region in partition["regions"]] == [{"MaxPool": 1}]
    assert [(border["direction"], border["elements"]) for border in partition["borders"]] == [
        ("to integers", 32),
        ("to float", 8),
    ]


def test_the_tables_show_regions_and_conversions(run: Any, facts: Any, quantize: Any) -> None:
    quantize(facts, "--exclude", "n_c2")
    shown = run("inspect", "q.onnx", "--partition").out
    assert "Integer subgraphs" in shown
    assert "to float" in shown
