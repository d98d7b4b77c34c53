"""Range methods (observers): min-max, moving average, percentile, MSE, entropy, one per file.

Each is a pure function of a tensor's statistics. A new method is a new file and a line in ``RANGE_METHODS``; where
people may set a number of it, also one in ``RANGE_PARAMETERS``. Nothing heavy may be imported here: the command line
reads its choices from these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeParameter:
    """The number of a range method that people may set.

    Attributes:
        option: what they call it, such as ``percentile``.
        field: what the method's class calls it.
        meaning: what it is, in a few words.
        default: what counts unless it is set; its type, int or float, is that of the number.
        per_unit: how many of people's units are one of the class's: 100 where they think in percent.
    """

    option: str
    field: str
    meaning: str
    default: int | float
    per_unit: float | None = None


RANGE_PARAMETERS: Mapping[str, RangeParameter] = {
    "moving-average": RangeParameter(option="spread", field="spread", meaning="deviations added", default=0.0),
    "percentile": RangeParameter(
        option="percentile", field="keep", meaning="percent kept", default=99.99, per_unit=100.0
    ),
    "entropy": RangeParameter(option="entropy-bins", field="bins", meaning="bins to search in", default=1024),
    "mse": RangeParameter(option="mse-candidates", field="candidates", meaning="ends tried per side", default=40),
}


def range_method_class(name: str) -> type[RangeMethod]:
    """Loads the class of a name in ``RANGE_METHODS``."""
    module, _, attribute = RANGE_METHODS[name].partition(":")
    return cast(type[RangeMethod], getattr(import_module(module), attribute))


def range_method(name: str, value: int | float | None = None) -> RangeMethod:
    """Makes the method that a name in ``RANGE_METHODS`` stands for, with ``value`` for its number in people's units.

    Raises:
        CalibError: the number makes no sense.
    """
    made = range_method_class(name)
    if value is None:
        return made()
    parameter = RANGE_PARAMETERS[name]
    return made(**{parameter.field: value if parameter.per_unit is None else value / parameter.per_unit})
