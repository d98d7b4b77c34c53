"""Reads the small JSON files of a language model's folder, which may be damaged or hostile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtool.errors import InputError

_MOST_BYTES = 10_000_000


def read_json(file: Path, *, fix: str) -> Mapping[str, Any]:
    """Returns the mapping that ``file`` holds.

    Raises:
        InputError: it is too large, cannot be read, or holds something else.
    """
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError("too large")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON", fix=fix) from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is no mapping", fix=fix)
    return content
