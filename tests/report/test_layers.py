"""What ``--layers`` finds inside of a quantized model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from qtool.cli.app import app

SCALE, ZERO = 0.05, 40

pytestmark = pytest.mark.usefixtures("without_memory")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A float model x·w → relu → ·v, one with the relu on a grid, and one that also holds x·w in another scale."""
    random = np.random.default_rng(3)
    w, v = (random.normal(size=(6, 6)).astype(np.float32) for _ in range(2))
    factors = random.uniform(0.2, 5.0, size=6).astype(np.float32)

    def save(name: str, middle: list[onnx.NodeProto], arrays: dict[str, np.ndarray]) -> None:
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["hidden"]), *middle],
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
            [numpy_helper.from_array(array, key) for key, array in arrays.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / name)

    relu = helper.make_node("Relu", ["hidden"], ["act"])
    grid = {"scale": np.float32(SCALE), "zero": np.uint8(ZERO)}
    on_grid = [
        helper.make_node("QuantizeLinear", ["act", "scale", "zero"], ["act_q"]),
        helper.make_node("DequantizeLinear", ["act_q", "scale", "zero"], ["act_dq"]),
        helper.make_node("MatMul", ["act_dq", "v"], ["y"]),
    ]
    arrays = {"w": w, "v": v}
    save("float.onnx", [relu, helper.make_node("MatMul", ["act", "v"], ["y"])], arrays)
    save("int8.onnx", [relu, *on_grid], {**arrays, **{key: np.asarray(value) for key, value in grid.items()}})
    save(
        "scaled.onnx",
        [relu, helper.make_node("MatMul", ["act", "v"], ["y"])],
        {"w": w * factors, "v": v / factors[:, None]},
    )
    np.savez(tmp_path / "x.npz", x=2 * random.normal(size=(16, 6)).astype(np.float32))
    return tmp_path


def report(models: Path, quantized: str, *options: str) -> Result:
    paths = [str(models / name) for name in ("float.onnx", quantized)]
    return CliRunner().invoke(
        app, ["report", *paths, "--data", str(models / "x.npz"), "--no-latency", "--json", *options]
    )


def layers_of(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return {layer["tensor"]: layer for layer in json.loads(result.stdout)["quantized_models"][0]["layers"]}


def test_noise_of_every_tensor_is_numpys(models: Path) -> None:
    layers = layers_of(report(models, "int8.onnx", "--layers"))
    w = numpy_helper.to_array(onnx.load(models / "float.onnx").graph.initializer[0])
    with np.load(models / "x.npz") as data:
        act = np.maximum(data["x"] @ w, 0)
    held = (np.clip(np.rint(act / SCALE) + ZERO, 0, 255) - ZERO) * SCALE
    assert layers["act"]["sqnr_db"] == pytest.approx(10 * np.log10((act**2).sum() / ((act - held) ** 2).sum()), abs=0.1)
    assert (layers["act"]["quantized"], layers["act"]["operator"]) == (True, "Relu")
    assert (layers["hidden"]["quantized"], layers["hidden"]["sqnr_db"]) == (False, None)  # the same in both
    assert list(layers) == ["hidden", "act", "y"]


def test_factors_that_moved_between_layers_are_no_noise(models: Path) -> None:
    layers = layers_of(report(models, "scaled.onnx", "--layers"))
    for tensor in ("hidden", "act"):
        assert layers[tensor]["rescaled"]
        assert layers[tensor]["sqnr_db"] > 100
    assert not layers["y"]["rescaled"]


def test_histograms_count_every_value_beside_the_range_of_the_integers(models: Path) -> None:
    result = report(models, "int8.onnx", "--histogram", "a*")
    (drawn,) = json.loads(result.stdout)["quantized_models"][0]["histograms"]
    assert sum(drawn["counts"]) == 16 * 6
    assert drawn["range_low"] == pytest.approx(-ZERO * SCALE)
    assert drawn["range_high"] == pytest.approx((255 - ZERO) * SCALE)
    w = numpy_helper.to_array(onnx.load(models / "float.onnx").graph.initializer[0])
    with np.load(models / "x.npz") as data:
        act = np.maximum(data["x"] @ w, 0)
    assert drawn["clipped_share"] == pytest.approx((act > (255.5 - ZERO) * SCALE).mean())


def test_a_pattern_without_a_tensor_is_refused(models: Path) -> None:
    result = report(models, "int8.onnx", "--histogram", "head*")
    assert result.exit_code == 2
    assert "act" in result.stderr


def test_without_the_option_nothing_inside_is_looked_at(models: Path) -> None:
    assert not layers_of(report(models, "int8.onnx"))


def test_models_without_a_common_tensor_are_refused_only_where_it_was_asked_for(models: Path) -> None:
    model = onnx.load(models / "float.onnx")
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "h"
    model.graph.node[1].output[0] = model.graph.node[2].input[0] = "a"
    model.graph.node[2].output[0] = "z"
    model.graph.node.append(helper.make_node("Identity", ["z"], ["y"]))
    del model.graph.value_info[:]
    onnx.save(model, models / "renamed.onnx")
    layers = layers_of(report(models, "renamed.onnx", "--html", str(models / "r.html")))
    assert set(layers) == {"y"}
