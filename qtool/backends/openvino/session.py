"""Opens models in OpenVINO's CPU plugin and runs them.

Floats are computed in float32: without being told, OpenVINO takes bfloat16 on processors that have it, and then neither
outputs nor times are those of the model
(https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference/precision-control.html).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qtool.backends.openvino.installed import check_installed
from qtool.calib.specs import Array, Feed, TensorSpec
from qtool.errors import RuntimeRefusedError
from qtool.runtime.profile import OperatorTime

_RUNS = 8
_LONGEST_REASON = 200
# What stands in OpenVINO's messages before and after what is wrong.
_NOISE = ("Exception from ", "Check '", "While validating", "FrontEnd API failed", "Model wasn't fully", "Summary:")
_FIX = "OpenVINO does not take every ONNX model: use another --target or --runtime, or export the model again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutedLayer:
    """One layer of the graph that the CPU plugin runs.

    Attributes:
        name: its name.
        kind: its type there.
        precision: what it computes in, such as ``u8``, ``i8`` or ``f32``.
        originals: the nodes of the model that are fused in it, by name.
        outputs: the types of its outputs.
        sources: the names of the layers whose outputs it reads.
    """

    name: str
    kind: str
    precision: str
    originals: tuple[str, ...]
    outputs: tuple[str, ...]
    sources: tuple[str, ...]


class OpenvinoSession:
    """Holds one model opened in OpenVINO.

    Attributes:
        inputs: the graph's inputs.
        outputs: what it returns.
    """

    def __init__(
        self,
        model: Path | bytes,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        threads: int = 0,
        profiles: bool = False,
    ) -> None:
        """Opens an ONNX ``model``, a path or the serialized model itself.

        Args:
            model: the file, or its bytes.
            inputs: what the graph takes.
            outputs: what it returns, in its order.
            threads: threads of the runtime; 0 lets it take one per core.
            profiles: whether to count how long every layer runs.

        Raises:
            UsageError: OpenVINO is not installed.
            RuntimeRefusedError: it does not load the model.
        """
        check_installed()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        if profiles:
            config["PERF_COUNT"] = True
        what = "the model" if isinstance(model, bytes) else str(model)
        try:
            core = _core()
            read = core.read_model(model if isinstance(model, bytes) else str(model))
            places = {name: place for place, port in enumerate(read.inputs) for name in port.get_names()}
            self._compiled = core.compile_model(read, "CPU", config)
            self._request = self._compiled.create_infer_request()
        except Exception as error:  # OpenVINO's own errors share no base class of their own
            raise RuntimeRefusedError(f"OpenVINO does not load {what}: {told(error)}", fix=_FIX) from error
        self._places = places
        self._order = {spec.name: place for place, spec in enumerate(self.outputs)}

    def run(self, feeds: Mapping[str, Array], outputs: Iterable[str] | None = None) -> dict[str, Array]:
        """Returns the named outputs (default: all) for one batch of inputs.

        Raises:
            RuntimeRefusedError: OpenVINO stops while it runs the model.
        """
        # An input that nothing reads may be gone.
        given = {self._places[name]: np.ascontiguousarray(feed) for name, feed in feeds.items() if name in self._places}
        try:
            found = self._request.infer(given, share_inputs=True).to_tuple()
        except Exception as error:  # as above
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in feeds.items())
            raise RuntimeRefusedError(
                f"OpenVINO stops while running the model on {shapes}: {told(error)}",
                fix="check that the data has the shapes that the model takes (`qtool inspect` shows them)",
            ) from error
        wanted = self._order if outputs is None else list(outputs)
        return {name: np.asarray(found[self._order[name]]) for name in wanted}

    def layer_seconds(self) -> list[tuple[str, str, float]]:
        """Returns name, type and seconds of every layer that the last run executed; see ``profiles``."""
        return [
            (layer.node_name, layer.node_type, layer.real_time.total_seconds())
            for layer in self._request.profiling_info
            if layer.status.name == "EXECUTED"
        ]

    def executed(self) -> tuple[ExecutedLayer, ...]:
        """Returns the layers of the graph that runs, in the order in which they run."""
        return tuple(map(_executed, self._compiled.get_runtime_model().get_ordered_ops()))


def profiled_seconds(session: OpenvinoSession, feed: Feed) -> tuple[OperatorTime, ...]:
    """Returns how long each type of layer takes, by the shortest of several runs, the longest first.

    Raises:
        RuntimeRefusedError: OpenVINO stops while it runs the model.
    """
    shortest: dict[tuple[str, str], float] = {}
    for _ in range(_RUNS):
        session.run(feed)
        for name, kind, seconds in session.layer_seconds():
            shortest[kind, name] = min(seconds, shortest.get((kind, name), seconds))
    kinds: dict[str, list[float]] = {}
    for (kind, _), seconds in shortest.items():
        kinds.setdefault(kind, []).append(seconds)
    found = (OperatorTime(operator=kind, seconds=sum(times), kernels=len(times)) for kind, times in kinds.items())
    return tuple(sorted(found, key=lambda time: (-time.seconds, time.operator)))


def told(error: Exception) -> str:
    """Returns the line of an error of OpenVINO that says what is wrong, without where in its sources it was found.

    Operators that it does not know come first: those behind them fail as well.
    """
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(_NOISE) and not line.endswith("with a message:")]
    unknown = [line for line in said if line.startswith("No conversion rule")]
    first = next(iter((*unknown, *said, *lines)), type(error).__name__)
    return " ".join(first.split())[:_LONGEST_REASON]


def _executed(layer: Any) -> ExecutedLayer:
    facts = layer.get_rt_info()

    def fact(name: str) -> str:
        return str(facts[name].astype(str)) if name in facts else ""

    return ExecutedLayer(
        name=layer.get_friendly_name(),
        kind=fact("layerType"),
        precision=fact("runtimePrecision"),
        originals=tuple(filter(None, fact("originalLayersNames").split(","))),
        outputs=tuple(filter(None, fact("outputPrecisions").split(","))),
        sources=tuple(source.get_node().get_friendly_name() for source in layer.input_values()),
    )


@cache
def _core() -> Any:
    """Returns the one object of a process that holds the plugins."""
    import openvino

    return openvino.Core()
