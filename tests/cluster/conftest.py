"""The tests of tasks and of clusters; those with real workers need Ray."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

_NETWORK = """
network (float[batch,3,8,8] image) => (float[batch,4] logits)
{
    c = Conv <pads = [1,1,1,1]> (image, w, b)
    r = Relu (c)
    d = Conv <pads = [1,1,1,1]> (r, w2, b)
    s = Add (d, r)
    p = GlobalAveragePool (s)
    f = Flatten (p)
    logits = Gemm <transB = 1> (f, w3)
}
"""


_LAYERS = 12


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = importlib.util.find_spec("ray") is None
    for item in items:
        if item.get_closest_marker("distributed") is not None and missing:
            item.add_marker(pytest.mark.skip(reason="Ray not installed: make test-distributed"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small residual network."""
    generator = np.random.default_rng(3)
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {_NETWORK}')
    for name, shape in {"w": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "b": (8,), "w3": (4, 8)}.items():
        values = generator.normal(0, 0.3, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}"
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def deep_model(tmp_path: Path) -> Path:
    """A chain of layers whose weights have outliers, so that quantizing them costs accuracy."""
    generator = np.random.default_rng(3)
    lines = ["r0 = Relu (image)"]
    for layer in range(1, _LAYERS + 1):
        lines.append(f"c{layer} = Conv <pads = [1,1,1,1]> (r{layer - 1}, w{layer}, b)")
        lines.append(f"r{layer} = {'Relu' if layer % 3 else 'Tanh'} (c{layer})")
    lines += [f"p = GlobalAveragePool (r{_LAYERS})", "f = Flatten (p)", "logits = Gemm <transB = 1> (f, w, bias)"]
    head = '<ir_version: 8, opset_import: ["" : 17]> net (float[batch,3,8,8] image) => (float[batch,4] logits)'
    proto = parser.parse_model(f"{head} {{ {' '.join(lines)} }}")
    shapes = {f"w{layer}": (8, 3 if layer == 1 else 8, 3, 3) for layer in range(1, _LAYERS + 1)}
    for name, shape in {**shapes, "w": (4, 8), "b": (8,), "bias": (4,)}.items():
        values = 0.15 * generator.standard_t(2.5, shape)
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    for node in proto.graph.node:
        node.name = f"/{node.output[0]}"
    onnx.save(proto, tmp_path / "deep.onnx")
    return tmp_path / "deep.onnx"


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> Path:
    """Forty images for the network, as data.npz."""
    images = np.random.default_rng(4).normal(0, 1, (40, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", image=images)
    return tmp_path / "data.npz"


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[Any]:
    """A Ray cluster of two machines with one processor each, both of them here."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def one_pass(run: Any, model: Path) -> Callable[[], bytes]:
    """Returns the statistics file of a pass in one process."""

    def call() -> bytes:
        outcome = run("calibrate", model, "--calib-data", "data.npz", "-o", "one.npz")
        assert outcome.code == 0, outcome.err
        return Path("one.npz").read_bytes()

    return call
