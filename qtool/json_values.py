"""Turns values into those that JSON has, and into its text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def json_value(value: Any) -> Any:
    """Returns a value as ``json.dumps(..., allow_nan=False)`` takes it, and everything inside of it too.

    JSON knows neither infinity nor NaN: both become null. Paths become texts, and tuples lists.
    """
    if isinstance(value, Mapping):
        return {key: json_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def json_text(value: Any) -> str:
    """Returns ``value`` as a JSON document that people can read too; ends with a line break."""
    return json.dumps(json_value(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
