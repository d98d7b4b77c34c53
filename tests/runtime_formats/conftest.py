from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from typer.testing import CliRunner, Result

from qtool.cli.app import app

NET = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[n, 3, 12, 12] image) => (float[n, 5] scores) {
    stem = Conv<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(image, w_stem, b_stem)
    active = Relu(stem)
    depth = Conv<kernel_shape = [3, 3], group = 8, pads = [1, 1, 1, 1]>(active, w_depth, b_depth)
    six = Constant<value_float = 6.0>()
    zero = Constant<value_float = 0.0>()
    clipped = Clip(depth, zero, six)
    sum = Add(clipped, active)
    pooled = GlobalAveragePool(sum)
    flat = Flatten<axis = 1>(pooled)
    scores = Gemm<transB = 1>(flat, w_head, b_head)
}
"""
_SHAPES = {
    "w_stem": (8, 3, 3, 3),
    "b_stem": (8,),
    "w_depth": (8, 1, 3, 3),
    "b_depth": (8,),
    "w_head": (5, 8),
    "b_head": (5,),
}
# The layers that qtool quantizes in it.
LAYERS = 3

Run = Callable[..., Result]


def _images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 12, 12)).astype(np.float32)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small network, float.onnx and int8.onnx, and images.npz."""
    folder = tmp_path_factory.mktemp("models")
    model = parser.parse_model(NET)
    generator = np.random.default_rng(7)
    for name, shape in _SHAPES.items():
        values = (generator.standard_normal(shape) * 0.4).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model)
    onnx.save(model, folder / "float.onnx")
    np.savez(folder / "images.npz", image=_images(16, 1))
    options = ["--effort", "fast", "--smallest", "--machine-profile", "shipped", "--target", "x86", "-q"]
    data = ["--calib-data", str(folder / "images.npz")]
    source, target = str(folder / "float.onnx"), str(folder / "int8.onnx")
    result = CliRunner().invoke(app, ["quantize", source, *data, *options, "-o", target])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with copies of the models."""
    for name in ("float.onnx", "int8.onnx", "images.npz"):
        (tmp_path / name).write_bytes((models / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs ``qtool convert`` in the working folder."""

    def convert(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["convert", *arguments])

    return convert


@pytest.fixture
def images() -> np.ndarray:
    """Images that nothing was calibrated on: float32, shape (4, 3, 12, 12)."""
    return _images(4, 2)
