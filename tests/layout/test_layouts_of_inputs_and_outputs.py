"""`qtool optimize --io-layout`: images that a graph takes and returns, with their channels elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

_WEIGHTS = {
    "w1": np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32),
    "w2": np.random.default_rng(1).normal(size=(3, 8, 1, 1)).astype(np.float32),
}


@pytest.fixture
def first(graph: Any, tmp_path: Path) -> onnx.ModelProto:
    """Takes and returns an image with channels first, and returns a mean; stored as first.onnx."""
    model: onnx.ModelProto = graph(
        """first (float[batch,3,8,8] image, float[batch,4] more) => (float[batch,3,6,6] made, float[batch,4] sum) {
            c1 = Conv (image, w1)
            r1 = Relu (c1)
            c2 = Conv (r1, w2)
            made = Sigmoid (c2)
            sum = Add (more, more)
        }""",
        **_WEIGHTS,
    )
    onnx.save(model, tmp_path / "first.onnx")
    return model


@pytest.fixture
def last(graph: Any, tmp_path: Path) -> onnx.ModelProto:
    """The same with channels last, as TensorFlow writes it; stored as last.onnx."""
    model: onnx.ModelProto = graph(
        """last (float[batch,8,8,3] image) => (float[batch,6,6,3] made) {
            t = Transpose <perm = [0,3,1,2]> (image)
            c1 = Conv (t, w1)
            u1 = Transpose <perm = [0,2,3,1]> (c1)
            r1 = Relu (u1)
            t1 = Transpose <perm = [0,3,1,2]> (r1)
            c2 = Conv (t1, w2)
            u2 = Transpose <perm = [0,2,3,1]> (c2)
            made = Sigmoid (u2)
        }""",
        **_WEIGHTS,
    )
    onnx.save(model, tmp_path / "last.onnx")
    return model


def _images() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(2, 3, 8, 8)).astype(np.float32)


def test_a_model_with_channels_last_has_them_first_and_no_transposes(
    run: Any, tmp_path: Path, last: onnx.ModelProto, outputs: Any, count: Any
) -> None:
    shown = run("optimize", "last.onnx", "--passes", "to-nchw", "--io-layout", "nchw", "-o", "out.onnx")
    assert shown.code == 0, shown.err
    assert "NCHW now: image, made" in shown.out
    made = onnx.load(tmp_path / "out.onnx")
    assert count(made) == 0
    (expected,) = outputs(last, {"image": _images().transpose(0, 2, 3, 1)})
    (found,) = outputs(made, {"image": _images()})
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), rtol=1e-5)


def test_images_become_channels_last_and_other_inputs_stay(
    run: Any, tmp_path: Path, first: onnx.ModelProto, outputs: Any
) -> None:
    report = run(
        "optimize", "first.onnx", "--passes", "to-nchw", "--io-layout", "nhwc", "-o", "out.onnx", "--json"
    ).json
    assert report["turned"] == {"layout": "nhwc", "inputs": ["image"], "outputs": ["made"]}
    assert max(report["largest_difference"].values()) <= 1e-5
    made = onnx.load(tmp_path / "out.onnx")
    dims = [[dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in made.graph.input]
    assert dims == [["batch", 8, 8, 3], ["batch", 4]]
    more = np.ones((2, 4), np.float32)
    expected = outputs(first, {"image": _images(), "more": more})
    found = outputs(made, {"image": _images().transpose(0, 2, 3, 1), "more": more})
    np.testing.assert_allclose(found[0], expected[0].transpose(0, 2, 3, 1), rtol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])


def test_there_and_back_leaves_no_transpose(run: Any, tmp_path: Path, first: onnx.ModelProto, count: Any) -> None:
    assert run("optimize", "first.onnx", "--passes", "to-nchw", "--io-layout", "nhwc", "-o", "there.onnx").code == 0
    assert run("optimize", "there.onnx", "--passes", "to-nchw", "--io-layout", "nchw", "-o", "back.onnx").code == 0
    assert (count(onnx.load(tmp_path / "there.onnx")), count(onnx.load(tmp_path / "back.onnx"))) == (2, 0)


def test_what_has_the_layout_stays(run: Any, first: onnx.ModelProto) -> None:
    shown = run("optimize", "first.onnx", "--io-layout", "nchw", "--dry-run")
    assert shown.code == 0, shown.err
    assert "nothing, every image was" in shown.out
