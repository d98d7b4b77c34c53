"""Finds the range of one tensor: in samples, in a statistics file, or in the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.calib.collect import collect
from qtool.calib.specs import Array
from qtool.calib.statistics import TensorStatistics
from qtool.calib.statistics_file import read_statistics
from qtool.errors import InputError
from qtool.graph.specs import model_specs
from qtool.progress import Progress
from qtool.runtime.graphs import open_graph, watching
from qtool.workflows.quantize.data_request import DataRequest

# A thousandth of the values lies below the first and above the last.
_QUANTILES = (0.001, 0.01, 0.5, 0.99, 0.999)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRange:
    """What is known of the values of a tensor.

    Attributes:
        minimum: the smallest one, exact.
        maximum: the largest one, exact.
        quantiles: values that a share of all, 0 to 1, is not above; to about 1/256 of themselves.
        values: how many there were.
        source: ``data``, ``statistics`` or ``model``.
        samples: how many samples they come from; 0 for a constant.
    """

    minimum: float
    maximum: float
    quantiles: dict[float, float]
    values: int
    source: str
    samples: int


def range_in_data(model: ir.Model, tensor: str, data: DataRequest, progress: Progress) -> TensorRange | None:
    """Runs ``model`` on samples and watches one tensor; None where it never has a value.

    Raises:
        CalibError: the samples do not fit the model, or there are none.
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    inputs, outputs = model_specs(model)
    dataset = data.open()
    feeds = data.feeds(dataset, inputs, outputs, remark=progress.note)
    if any(spec.name == tensor for spec in inputs):
        seen = TensorStatistics()
        samples = 0
        for feed in feeds:
            _add(seen, feed[tensor])
            samples += len(feed[tensor]) if feed[tensor].ndim else 1
        return _range(seen, "data", samples)
    with (
        watching(model, [tensor]) as watched,
        open_graph(watched, level="basic") as session,
        progress.task("measuring", data.available(dataset)) as advance,
    ):
        collected = collect(session, feeds, [tensor], advance=advance, outputs=())
    return _range(collected.statistics[tensor], "data", collected.samples)


def range_in_statistics(path: Path, tensor: str) -> TensorRange | None:
    """Reads the range from a file of ``qtool calibrate``.

    Raises:
        CalibError: it is none.
        InputError: it does not have the tensor.
    """
    collected = read_statistics(path).collected
    seen = collected.statistics.get(tensor)
    if seen is None:
        near = get_close_matches(tensor, collected.statistics, n=3, cutoff=0.3)
        fix = f"it has {', '.join(near)}" if near else "measure it on samples: --data DATA"
        raise InputError(f"{path} holds nothing about the tensor '{tensor}'", fix=fix)
    return _range(seen, "statistics", collected.samples)


def range_of_constant(array: Array) -> TensorRange | None:
    """Returns the range of stored numbers; None where they are none."""
    seen = TensorStatistics()
    if array.dtype.kind in "fiub" or array.dtype.name == "bfloat16":
        _add(seen, array)
    return _range(seen, "model", 0)


def _add(seen: TensorStatistics, array: Array) -> None:
    flat = np.asarray(array, dtype=np.float32).reshape(-1)
    seen.add(flat, flat)


def _range(seen: TensorStatistics, source: str, samples: int) -> TensorRange | None:
    if not seen.values:
        return None
    histogram = seen.histogram()
    reached = np.cumsum(histogram.counts) / max(histogram.total, 1)
    places = [min(int(np.searchsorted(reached, share)), len(reached) - 1) for share in _QUANTILES]
    # The edge towards zero, so that zeros are zeros.
    edges = np.where(histogram.centers > 0, histogram.low, histogram.high)
    return TensorRange(
        minimum=seen.minimum,
        maximum=seen.maximum,
        quantiles={share: float(edges[place]) for share, place in zip(_QUANTILES, places, strict=True)},
        values=seen.values,
        source=source,
        samples=samples,
    )
