from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest


def test_makers_and_readers_are_named(facts: Any, network: Path) -> None:
    flow = facts("net.onnx", "--flow", "image")["flow"]
    assert (flow["role"], flow["is_output"], flow["producer"]) == ("input", False, None)
    assert [(reader["node"], reader["position"]) for reader in flow["readers"]] == [("n_c1", 0), ("n_c3", 0)]
    flow = facts("net.onnx", "--flow", "s")["flow"]
    assert flow["tensor"] == "s"
    assert (flow["producer"]["node"], flow["producer"]["reads"]) == ("n_s", ["c2", "c3"])
    assert flow["size"] == {"dtype": "float32", "shape": [1, 8, 8, 8], "nbytes": 2048}
    assert flow["range"] is None


def test_a_node_stands_for_what_it_makes(facts: Any, network: Path) -> None:
    assert facts("net.onnx", "--flow", "n_r1")["flow"]["tensor"] == "r1"


def test_a_reader_inside_of_a_branch_is_found(facts: Any, save: Any) -> None:
    save(
        "branch.onnx",
        """branch (float[2] x, bool take) => (float[2] y) {
            outer = Relu (x)
            y = If (take) <
                then_branch = one () => (float[2] a) { a = Neg (outer) },
                else_branch = other () => (float[2] b) { b = Identity (x) }
            >
        }""",
    )
    readers = facts("branch.onnx", "--flow", "outer")["flow"]["readers"]
    assert [(reader["node"], reader["position"]) for reader in readers] == [("n_y", None)]


@pytest.mark.parametrize("tensor", ["r1", "image"])
def test_the_range_is_that_of_the_samples(facts: Any, network: Path, data: Path, tensor: str) -> None:
    found = facts("net.onnx", "--flow", tensor, "--data", "data.npz", "--limit", "12")["flow"]["range"]
    images = np.load(data)["image"][:12]
    values = np.maximum(_first_layer(network, images), 0) if tensor == "r1" else images
    assert (found["minimum"], found["maximum"]) == pytest.approx((values.min(), values.max()), rel=1e-5)
    assert (found["samples"], found["values"], found["source"]) == (12, values.size, "data")
    for share, value in found["quantiles"].items():
        assert value == pytest.approx(np.quantile(values, float(share)), rel=0.02, abs=0.02)


def test_the_range_comes_from_a_statistics_file(run: Any, facts: Any, network: Path, data: Path) -> None:
    made = run("calibrate", "net.onnx", "--calib-data", "data.npz", "-o", "net.stats.npz")
    assert made.code == 0, made.err
    found = facts("net.onnx", "--flow", "image", "--calib-stats", "net.stats.npz")["flow"]["range"]
    images = np.load(data)["image"]
    assert (found["minimum"], found["maximum"], found["source"]) == (images.min(), images.max(), "statistics")
    result = run("inspect", "net.onnx", "--flow", "c1", "--calib-stats", "net.stats.npz")
    assert result.code == 2
    assert "--data" in result.err or "it has" in result.err


def test_a_constant_shows_its_own_range(facts: Any, network: Path) -> None:
    flow = facts("net.onnx", "--flow", "w4")["flow"]
    assert (flow["role"], flow["range"]["source"], flow["range"]["values"]) == ("constant", "model", 40)


def test_an_unknown_name_is_refused_with_a_suggestion(run: Any, network: Path) -> None:
    result = run("inspect", "net.onnx", "--flow", "scors")
    assert result.code == 2
    assert "scores" in result.err


def _first_layer(network: Path, images: np.ndarray) -> np.ndarray:
    import onnx

    model = onnx.load(network)
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("c1", onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["c1"], {"image": images})[0]
