"""Turns values into those that JSON has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any


def json_value(value: Any) -> Any:
    """Returns a value as ``json.dumps(..., allow_nan=False)`` takes it, and everything inside of it too.

    JSON knows neither infinity nor NaN: both become null. Paths become texts, and tuples lists.
    """
    if isinstance(value, dict):
        return {key: json_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
