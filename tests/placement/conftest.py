"""Small graphs, taken through the steps that lead to a quantized one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from qtool.backends.registry import backend_named
from qtool.backends.targets import PRESETS
from qtool.calib.ranges.min_max import MinMax
from qtool.calib.statistics import TensorStatistics
from qtool.plan import Plan
from qtool.planning import build_plan
from qtool.quantizer import quantize_graph
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Level, Session
from qtool.schemes import Scheme
from qtool.selection import NodeSelection
from qtool.workflows.quantize.prepare import prepare

Prepared: TypeAlias = Callable[..., ir.Model]
Quantized: TypeAlias = Callable[..., ir.Model]
Feed: TypeAlias = dict[str, npt.NDArray[Any]]


_U8, _S8 = np.dtype(np.uint8), np.dtype(np.int8)
_ENDS = {"QuantizeLinear", "DequantizeLinear"}


@pytest.fixture
def random_array() -> Callable[..., npt.NDArray[np.float32]]:
    """Makes float32 arrays of a given shape, always the same for the same arguments."""

    def make(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
        return np.random.default_rng([seed, *shape]).normal(0.0, 0.4, shape).astype(np.float32)

    return make


@pytest.fixture
def prepared() -> Prepared:
    """Parses the body of a graph, stores the given arrays as its initializers and prepares it."""

    def make(text: str, *, opset: int = 17, **tensors: npt.NDArray[Any]) -> ir.Model:
        proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
        proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
        # The text form gives nodes no names: they are called after their first output here.
        for node in proto.graph.node:
            node.name = f"/{node.output[0]}/{node.op_type}"
        return prepare(ir.from_proto(proto))

    return make


@pytest.fixture
def quantized() -> Quantized:
    """Quantizes a prepared model in place: extremes of the given feeds, weights rounded to nearest."""

    def make(
        model: ir.Model,
        feeds: list[dict[str, npt.NDArray[Any]]],
        *,
        scheme: Scheme = PRESETS["x86"],
        exclude: tuple[str, ...] = (),
    ) -> ir.Model:
        plan = build_plan(model, scheme, NodeSelection(exclude=exclude))
        quantize_graph(model, plan, _statistics(model, plan, feeds), MinMax(), bias_correction=False)
        backend_named(scheme.backend).finish(model, scheme)
        return model

    return make


def _statistics(model: ir.Model, plan: Plan, feeds: list[dict[str, npt.NDArray[Any]]]) -> dict[str, TensorStatistics]:
    statistics = {name: TensorStatistics() for name in plan.observed}
    inputs = {value.name for value in model.graph.inputs}
    computed = [name for name in plan.observed if name not in inputs]
    # A session without outputs does not run, and the plan may look at the model's inputs alone.
    computed = computed or [value.name or "" for value in model.graph.outputs]
    with watching(model, computed) as watched, open_graph(watched) as session:
        for feed in feeds:
            for name, value in {**feed, **session.run(feed)}.items():
                if name in statistics:
                    statistics[name].add(value, value)
    return statistics


class Runtime(Protocol):
    """What opens patterns."""

    def optimize(self, model: bytes, to: Path, level: Level) -> None:
        """Writes the graph as it is rewritten."""

    def run(self, model: bytes, feed: Feed, level: Level) -> Feed:
        """Returns what a model gives out."""


class _Installed:
    """The onnxruntime that is installed."""

    def optimize(self, model: bytes, to: Path, level: Level) -> None:
        Session(model, threads=1, level=level, optimized_to=to)

    def run(self, model: bytes, feed: Feed, level: Level) -> Feed:
        return Session(model, threads=1, level=level).run(feed)


class Pattern:
    """Builds a graph of Q/DQ pairs node by node; every method returns the name of a tensor."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.opset = 14

    def _new(self, stem: str) -> str:
        return f"{stem}_{len(self.nodes) + len(self.initializers)}"

    def constant(self, array: npt.NDArray[Any] | np.generic) -> str:
        name = self._new("constant")
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def input(self, *shape: int | str) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.nodes_of(operator, *inputs, outputs=1, **attributes)[0]

    def nodes_of(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        name = self._new(operator)
        names = [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, name=name, **attributes))
        return names

    def pair(self, tensor: str, *, scale: float = 0.05, zero_point: int = 128, dtype: np.dtype[Any] = _U8) -> str:
        """Q then DQ."""
        parameters = self.constant(np.float32(scale)), self.constant(np.array(zero_point, dtype))
        quantized = self.node("QuantizeLinear", tensor, *parameters)
        return self.node("DequantizeLinear", quantized, *parameters)

    def weight(self, *shape: int, axis: int | None = None, dtype: np.dtype[Any] = _S8, zero_point: int = 0) -> str:
        """DQ of stored integers, with one scale or one an index along ``axis``."""
        rng = np.random.default_rng(sum(shape))
        low = 0 if dtype == _U8 else -127
        integers = self.constant(rng.integers(low, low + 255, shape).astype(dtype))
        if axis is None:
            parameters = self.constant(np.float32(0.01)), self.constant(np.array(zero_point, dtype))
            return self.node("DequantizeLinear", integers, *parameters)
        scales = self.constant(np.linspace(0.01, 0.02, shape[axis], dtype=np.float32))
        zeros = self.constant(np.full(shape[axis], zero_point, dtype))
        return self.node("DequantizeLinear", integers, scales, zeros, axis=axis)

    def bias(self, channels: int, *, input_scale: float = 0.05, per_channel: bool = True) -> str:
        """DQ of int32 on the scale of the products, without a zero point."""
        integers = self.constant(np.arange(channels, dtype=np.int32) * 50)
        if not per_channel:
            return self.node("DequantizeLinear", integers, self.constant(np.float32(input_scale * 0.01)))
        scales = np.float32(input_scale) * np.linspace(0.01, 0.02, channels, dtype=np.float32)
        return self.node("DequantizeLinear", integers, self.constant(scales.astype(np.float32)), axis=0)

    def output(self, tensor: str) -> None:
        self.outputs.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))

    def model(self) -> bytes:
        graph = helper.make_graph(self.nodes, "pattern", self.inputs, self.outputs, self.initializers)
        opsets, ir_version = [helper.make_opsetid("", self.opset)], 8 if self.opset < 21 else 10
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
        return bytes(model.SerializeToString())

    def optimized(self, folder: Path, level: Level = "extended") -> Counter[str]:
        """Returns the operators that are left once onnxruntime has rewritten the graph."""
        path = folder / "optimized.onnx"
        self._runtime.optimize(self.model(), path, level)
        return Counter(node.op_type for node in onnx.load(path).graph.node)

    def run(self, feed: Feed, level: Level = "all") -> Feed:
        """Returns what the graph gives out."""
        return self._runtime.run(self.model(), feed, level)

    def kernels(self, folder: Path, level: Level = "extended") -> dict[str, int]:
        """As ``optimized``, without the Q and DQ at the ends."""
        return {name: n for name, n in self.optimized(folder, level).items() if name not in _ENDS}


@pytest.fixture
def run_graph() -> Callable[..., Feed]:
    """Runs a model in onnxruntime on one thread."""

    def run(model: ir.Model | onnx.ModelProto, feed: Feed, level: Level = "none") -> Feed:
        proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
        return Session(proto.SerializeToString(), threads=1, level=level).run(feed)

    return run


@pytest.fixture
def kernels_of() -> Callable[[ir.Model, Path], Counter[str]]:
    """Returns the operators that are left of a model once onnxruntime has rewritten it."""

    def count(model: ir.Model, folder: Path) -> Counter[str]:
        path = folder / "optimized.onnx"
        Session(ir.to_proto(model).SerializeToString(), threads=1, level="extended", optimized_to=path)
        return Counter(node.op_type for node in onnx.load(path).graph.node)

    return count


@pytest.fixture
def signal_to_noise_db() -> Callable[[npt.NDArray[Any], npt.NDArray[Any]], float]:
    def ratio(signal: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
        return float(10 * np.log10(np.sum(signal.astype(np.float64) ** 2) / np.sum((signal - other) ** 2.0)))

    return ratio


@pytest.fixture
def stored_in() -> Callable[[ir.Model], Feed]:
    """Returns the stored tensors of a model."""
    return lambda model: {tensor.name: numpy_helper.to_array(tensor) for tensor in ir.to_proto(model).graph.initializer}


@pytest.fixture
def pattern(request: pytest.FixtureRequest) -> Pattern:
    """An empty graph to build a Q/DQ pattern in."""
    emulated = request.config.getoption("--arm64")
    return Pattern(request.getfixturevalue("arm64") if emulated else _Installed())
