"""Which options of ``qtool quantize`` have an effect on 8-bit floats."""

from __future__ import annotations

import typer

from qtool.cli.options.ranges import AUTO
from qtool.errors import UsageError

# Corrections and searches that move integers on a grid of equal steps.
_FOR_INTEGERS = (
    *("cle", "smoothquant", "gptq", "bias_correction", "weight_clipping", "reconstruction"),
    *("min_sqnr", "min_agreement", "max_drop", "max_float", "time_budget", "dynamic", "calib_stats"),
)
_METHODS = (AUTO, "minmax")


def refuse_with_float8(context: typer.Context) -> None:
    """Refuses options that are for integers.

    Raises:
        UsageError: one is given.
    """
    method = context.params.get("method")
    if method not in _METHODS:
        raise UsageError(
            f"--method {method} has no effect on 8-bit floats, whose scales take the largest magnitude to the largest",
            fix="drop it",
        )
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in _FOR_INTEGERS and source is not None and source.name == "COMMANDLINE" and context.params.get(name):
            raise UsageError(
                f"{parameter.opts[0]} has no effect on 8-bit floats", fix="drop it, or quantize to integers"
            )
