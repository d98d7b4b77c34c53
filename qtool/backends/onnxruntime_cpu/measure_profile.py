"""Times one kernel of each kind on this machine, in a second or two."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from qtool.backends.machine_profile import LayerKind, LayerSpeed, MachineProfile, OperatorSpeed
from qtool.backends.onnxruntime_cpu.kernel_probes import Form, Probe, chain
from qtool.metrics.latency import interleaved_times
from qtool.progress import Progress
from qtool.runtime.profile import operator_seconds
from qtool.runtime.session import Session

_DIGITS = 3
# The time assumed for a kernel that is fused into another one, in nanoseconds.
_LEAST = 1.0


def _conv(shape: tuple[int, ...], weight: tuple[int, ...], **attributes: object) -> Probe:
    pads = [length // 2 for length in weight[2:]] * 2
    return Probe(operator="Conv", shape=shape, weight=weight, attributes={"pads": pads, **attributes})


# Of medium size: large enough for a clock of microseconds, small enough for a few hundred runs per second.
_LAYERS: Mapping[LayerKind, Probe] = {
    LayerKind.CONV: _conv((1, 32, 40, 40), (64, 32, 3, 3)),
    LayerKind.POINTWISE: _conv((1, 96, 28, 28), (96, 96, 1, 1)),
    LayerKind.NARROW: _conv((1, 3, 96, 96), (32, 3, 3, 3)),
    LayerKind.DEPTHWISE: _conv((1, 96, 40, 40), (96, 1, 3, 3), group=96),
    LayerKind.LARGE_DEPTHWISE: _conv((1, 96, 28, 28), (96, 1, 5, 5), group=96),
    LayerKind.CONV_1D: _conv((1, 64, 400), (64, 64, 5)),
    LayerKind.MATRIX: Probe(operator="MatMul", shape=(48, 256), weight=(256, 512)),
    LayerKind.VECTOR: Probe(operator="MatMul", shape=(1, 512), weight=(512, 2048)),
    LayerKind.ACTIVATIONS: Probe(operator="MatMul", shape=(1, 12, 48, 48), inputs=2),
}


def _image(operator: str, inputs: int = 1, **attributes: object) -> Probe:
    return Probe(operator=operator, shape=(1, 96, 28, 28), inputs=inputs, attributes=attributes, between=True)


# After a Conv, whose layout they take over.
_OPERATORS: Mapping[str, Probe] = {
    "Add": _image("Add", 2),
    "Mul": _image("Mul", 2),
    "Sigmoid": _image("Sigmoid"),
    "LeakyRelu": _image("LeakyRelu"),
    "Concat": _image("Concat", 2, axis=1),
    "AveragePool": _image("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    "GlobalAveragePool": _image("GlobalAveragePool"),
    "MaxPool": _image("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
}
_LAYER_KERNELS = frozenset({"Conv", "QLinearConv", "FusedConv"})
_BORDERS = frozenset({"QuantizeLinear", "DequantizeLinear", "Transpose", "ReorderInput", "ReorderOutput"})
# A chain of nodes with almost no work shows the constant time of a node.
_CHAIN, _CHAIN_ROUNDS = 64, 5


# Shows what an element of an image costs between float and integers, which every model may need.
_USUAL = LayerKind.POINTWISE


def measure_profile(
    progress: Progress,
    *,
    kinds: Collection[LayerKind] = tuple(LayerKind),
    operators: Collection[str] = tuple(_OPERATORS),
    threads: int = 0,
) -> MachineProfile:
    """Returns the cost of kernels on this machine, from undisturbed runs of each.

    Args:
        progress: receives the steps.
        kinds: the layers to time, beside pointwise ones.
        operators: the operators between layers to time, as far as there are kernels for them.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run a probe.
    """
    borders: dict[str, list[float]] = {name: [] for name in _BORDERS}

    def timed(probe: Probe, form: Form, left_out: frozenset[str] = _BORDERS) -> float:
        """Returns the nanoseconds of the operator itself, and stores those of an element at its borders."""
        found = operator_seconds(probe.model(form), probe.feed(), threads=threads)
        elements = math.prod(probe.shape)
        for time in found:
            if time.operator in _BORDERS:
                borders[time.operator].append(1e9 * time.seconds / time.kernels / elements)
        return max(1e9 * sum(time.seconds for time in found if time.operator not in left_out), _LEAST)

    probes = {kind: probe for kind, probe in _LAYERS.items() if kind in kinds or kind is _USUAL}
    between = {name: probe for name, probe in _OPERATORS.items() if name in operators}
    with progress.task("timing kernels", len(probes) + len(between)) as advance:
        layers = {}
        for kind, probe in probes.items():
            floats, signed, unsigned = (_rounded(timed(probe, form) / _products(probe)) for form in Form)
            layers[kind] = LayerSpeed(floats=floats, signed=signed, unsigned=unsigned)
            advance(1)
        speeds = {}
        for name, probe in between.items():
            elements = math.prod(probe.shape)
            # Some are fused into the Conv before them in float, and take no time of their own.
            floats, integers = (
                _rounded(timed(probe, form, _BORDERS | _LAYER_KERNELS) / elements)
                for form in (Form.FLOATS, Form.SIGNED)
            )
            speeds[name] = OperatorSpeed(floats=floats, integers=integers)
            advance(1)
    border = {name: _rounded(float(np.median(found))) for name, found in borders.items()}
    return MachineProfile(
        origin="measured",
        threads=threads,
        layers=layers,
        operators=speeds,
        quantize=border["QuantizeLinear"],
        dequantize=border["DequantizeLinear"],
        transpose=border["Transpose"],
        reorder=border["ReorderInput"],
        node=_rounded(_node_nanoseconds(threads)),
    )


def _node_nanoseconds(threads: int) -> float:
    """Returns the constant time of a node."""
    session = Session(chain("Add", _CHAIN), threads=threads)
    feed = {"x": np.ones((1, 8), np.float32)}
    (times,) = interleaved_times([lambda: session.run(feed)], rounds=_CHAIN_ROUNDS)
    return float(np.median(times)) * 1e9 / _CHAIN


def _products(probe: Probe) -> int:
    """Returns a probe's multiply-adds."""
    if probe.weight is None:
        return math.prod(probe.shape) * probe.shape[-1]
    if probe.operator == "Conv":
        return math.prod(probe.shape[2:]) * math.prod(probe.weight)
    return math.prod(probe.shape[:-1]) * math.prod(probe.weight)


def _rounded(value: float) -> float:
    """Rounds to the precision of a measurement of some microseconds."""
    return float(f"{value:.{_DIGITS}g}")
