"""Range methods (observers): min-max, moving average, percentile, MSE, entropy, one per file.

Each is a pure function of a tensor's statistics. A new method is a new file and a line in ``RANGE_METHODS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Protocol, cast

from qtool.calib.affine import Range
from qtool.calib.grid import Grid
from qtool.calib.statistics import TensorStatistics


class RangeMethod(Protocol):
    """Finds the range of one tensor."""

    def span(self, statistics: TensorStatistics, grid: Grid) -> Range:
        """Returns the range that ``grid`` should cover; ``statistics`` has at least one value."""
        ...


RANGE_METHODS: Mapping[str, str] = {
    "minmax": "qtool.calib.ranges.min_max:MinMax",
    "moving-average": "qtool.calib.ranges.moving_average:MovingAverage",
    "percentile": "qtool.calib.ranges.percentile:Percentile",
    "entropy": "qtool.calib.ranges.entropy:Entropy",
    "mse": "qtool.calib.ranges.mse:MeanSquaredError",
}


def range_method_class(name: str) -> type[RangeMethod]:
    """Loads the class of a name in ``RANGE_METHODS``."""
    module, _, attribute = RANGE_METHODS[name].partition(":")
    return cast(type[RangeMethod], getattr(import_module(module), attribute))
