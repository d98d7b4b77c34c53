"""The report as JSON, for other programs.

The schema's name carries its version: ``qtool.report/1`` may gain keys; when one goes or changes its meaning, the
number rises. JSON knows neither infinity nor NaN: both are written as null. Whether an infinite SQNR stands behind a
null tells ``identical``, whether a NaN does tells ``non_finite``.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from qtool.report.figures import figures
from qtool.report.model import Report

SCHEMA = "qtool.report/1"


def to_json(report: Report) -> dict[str, Any]:
    """Lays the report out as values that ``json.dumps(..., allow_nan=False)`` takes."""
    outputs = [{**asdict(output), "identical": output.identical} for output in report.fidelity]
    document = {"schema": SCHEMA, "figures": figures(report), **asdict(report), "fidelity": outputs}
    return {key: _plain(value) for key, value in document.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
