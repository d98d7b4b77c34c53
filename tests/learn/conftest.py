"""A small network with what it is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

GRAPH = """tuned (float[batch, 3, 12, 12] image) => (float[batch, 6] scores) {
    a = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
    r = Relu (a)
    c = Conv <pads = [1, 1, 1, 1], group = 8> (r, w2, b2)
    s = Relu (c)
    t = Add (r, s)
    g = GlobalAveragePool (t)
    f = Flatten (g)
    scores = Gemm <transB = 1> (f, w3, b3)
}"""


@dataclass(frozen=True)
class Network:
    """A float model and its data, in files."""

    model: Path
    data: Path

    def sqnr_db(self, path: Path) -> float:
        """Signal over noise of another model's scores on all data, computed by onnxruntime and numpy alone."""
        with np.load(self.data) as file:
            feed = {"image": file["image"]}
        wanted, given = (ort.InferenceSession(str(model)).run(None, feed)[0] for model in (self.model, path))
        return float(10 * np.log10(np.square(wanted).sum() / np.square(given - wanted).sum()))


@pytest.fixture
def network(save: Callable[..., Path], tmp_path: Path) -> Network:
    """Convolutions, one of them depthwise, a residual addition and class scores."""
    draw = np.random.default_rng(3)

    def drawn(*shape: int, scale: float) -> np.ndarray:
        return (draw.normal(size=shape) * scale).astype(np.float32)

    model = save(
        "network.onnx",
        GRAPH,
        w1=drawn(8, 3, 3, 3, scale=0.3) * np.geomspace(0.2, 2, 8, dtype=np.float32).reshape(8, 1, 1, 1),
        b1=drawn(8, scale=0.1),
        w2=drawn(8, 1, 3, 3, scale=0.4),
        b2=drawn(8, scale=0.1),
        w3=drawn(6, 8, scale=0.5),
        b3=drawn(6, scale=0.1),
    )
    data = tmp_path / "images.npz"
    np.savez(data, image=draw.normal(size=(96, 3, 12, 12)).astype(np.float32))
    return Network(model, data)
