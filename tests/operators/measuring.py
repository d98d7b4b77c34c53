"""Takes one kind through all of qtool: exported, optimized, quantized in every way, run and compared with torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from qtool.backends.coverage import Coverage
from qtool.backends.targets import PRESETS
from qtool.calib.ranges.min_max import MinMax
from qtool.formats.base import Weights
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.plan import DynamicPlan, Plan
from qtool.progress import Silent
from qtool.runtime.session import Session
from qtool.schemes import Scheme as Integers
from qtool.schemes import as_dynamic
from qtool.workflows.convert.model_source import ModelSource
from qtool.workflows.convert.torch_import import InputDescription, import_weights
from qtool.workflows.optimize.optimize import OptimizeRequest, optimize
from qtool.workflows.quantize.data_request import DataRequest
from qtool.workflows.quantize.dynamic_request import DynamicRequest
from qtool.workflows.quantize.quantize import quantize
from qtool.workflows.quantize.quantize_dynamic import quantize_dynamic
from qtool.workflows.quantize.request import QuantizeRequest
from qtool.workflows.tune.efforts import NO_SEARCH
from qtool.workflows.tune.timing import Timing
from tests.operators.kinds import Array, Kind, Scheme

# Whose sums are the same on every processor.
_X86 = PRESETS["x86"]
STATIC: Mapping[Scheme, Integers] = {
    Scheme.CHANNEL: _X86,
    Scheme.TENSOR: replace(_X86, per_channel=False),
    Scheme.SYMMETRIC: replace(_X86, activations=replace(_X86.activations, symmetric=True)),
}


@dataclass(frozen=True, slots=True)
class Error:
    """How far from torch a graph is.

    Attributes:
        db: signal over noise of all outputs together, in dB.
        largest: the largest difference, as a share of the range of torch's output.
    """

    db: float
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """What became of a kind in one way of quantizing.

    Attributes:
        coverage: what onnxruntime runs on integers.
        floats: how often each operator was left in float.
        error: how far from torch it is.
    """

    coverage: Coverage
    floats: Mapping[str, int]
    error: Error


class Subject:
    """Is one kind with its graph and its data, to be quantized again and again."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        """Exports the kind into ``folder`` and optimizes it; both compare what they write with what they read."""
        module = kind.module()
        self.kind, self.folder = kind, folder
        self.expected = kind.expected(module)
        self.data = _saved(kind.calibration(), folder)
        self.exported = _exported(module, kind, folder)
        self.model = folder / "optimized.onnx"
        optimize(
            OptimizeRequest(model=self.exported, output=self.model, data=DataRequest(source=str(self.data))), Silent()
        )

    def statically(self, integers: Integers, name: str) -> Quantized:
        """Quantizes with extremes of the data for ranges, and nothing that a search would find."""
        request = QuantizeRequest(
            source=ModelSource(path=self.model),
            data=DataRequest(source=str(self.data), batch_size=64 if self.data.is_file() else None),
            statistics=None,
            scheme=integers,
            method=MinMax(),
            method_name="minmax",
            searches=NO_SEARCH,
            timing=Timing(for_size=True),
            output=self.folder / f"{name}.onnx",
            threads=1,
        )
        report = quantize(request, Silent())
        return self._quantized(report.output, report.coverage, report.plan)

    def dynamically(self) -> Quantized:
        """Quantizes so that layers find their ranges as they run.

        Raises:
            InputError: it has no layer that can.
        """
        request = DynamicRequest(
            source=ModelSource(path=self.model),
            data=None,
            scheme=as_dynamic(_X86),
            output=self.folder / "dynamic.onnx",
            threads=1,
        )
        report = quantize_dynamic(request, Silent())
        return self._quantized(report.output, report.coverage, report.plan)

    def error(self, model: Path) -> Error:
        """Runs ``model`` in onnxruntime, on data that ranges do not come from, and compares it with torch."""
        return error_between(self.expected, self.kind.got(Session(model, threads=1).run))

    def _quantized(self, path: Path, coverage: Coverage, plan: Plan | DynamicPlan) -> Quantized:
        floats = Counter(skip.operator for skip in plan.skipped)
        return Quantized(coverage=coverage, floats=floats, error=self.error(path))


def _saved(pieces: list[dict[str, Array]], folder: Path) -> Path:
    """Writes calibration data as a file, or as a folder of files where shapes differ."""
    if len(pieces) == 1:
        np.savez(folder / "data.npz", **pieces[0])
        return folder / "data.npz"
    (folder / "data").mkdir()
    for number, piece in enumerate(pieces):
        np.savez(folder / "data" / f"{number}.npz", **piece)
    return folder / "data"


def _exported(module: nn.Module, kind: Kind, folder: Path) -> Path:
    """Writes the module's graph, as `qtool convert` does."""
    example = {name: array[:3] for name, array in kind.calibration()[-1].items()}
    imported = import_weights(
        Weights(tensors={}, metadata={}, source="a module", module=module),
        Path(kind.name),
        architecture=None,
        inputs=InputDescription(shapes=kind.shapes(), feeds=example),
        opset=None,
        progress=Silent(),
    )
    path = folder / "float.onnx"
    OnnxFile().write(imported.model, path)
    return path


def quantized_every_way(subject: Subject) -> dict[Scheme, Quantized | None]:
    """Quantizes in every way of the table; None where a kind has no bound and nothing to quantize."""
    ways: dict[Scheme, Quantized | None] = {
        scheme: subject.statically(integers, scheme.name) for scheme, integers in STATIC.items()
    }
    ways[Scheme.DYNAMIC] = None
    if Scheme.DYNAMIC in subject.kind.bounds:
        ways[Scheme.DYNAMIC] = subject.dynamically()
    return ways


def error_between(expected: Array, got: Array) -> Error:
    """Compares one output with what it should be."""
    assert got.shape == expected.shape
    signal = expected.astype(np.float64)
    noise = got - signal
    power = np.square(signal).sum()
    # Equal outputs differ by no more than float64's own rounding.
    least = np.square(np.finfo(np.float64).eps) * power
    return Error(
        db=float(10 * np.log10(power / max(np.square(noise).sum(), least))),
        largest=float(np.abs(noise).max() / (signal.max() - signal.min())),
    )
