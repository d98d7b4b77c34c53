"""Validates the fields of ``adapter_config.json``, an untrusted file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from qtool.errors import InputError

_LARGEST_NUMBER = 1e30
_LARGEST_WHOLE_NUMBER = 1 << 31


def check_fields(fields: Mapping[str, Any], where: str) -> None:
    """Passes when every known field is valid or missing.

    Raises:
        InputError: a field is invalid.
    """
    for name, (fits, form) in _FORMS.items():
        value = fields.get(name)
        if value is not None and not fits(value):
            raise InputError(
                f"{where} gives {str(value)[:40]!r} as {name}, which should be {form}", fix="save the adapter again"
            )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST_WHOLE_NUMBER


def _terms(value: Any) -> bool:
    return _count(value) and 0 < value <= 100


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError, RecursionError, OverflowError):
        return False
    return isinstance(value, str)


def _patterns(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _pattern(key) and _number(number) and number > 0 for key, number in value.items()
    )


def _rows(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, int) and not isinstance(row, bool) and 0 <= row < _LARGEST_WHOLE_NUMBER for row in value
    )


def _rows_by_name(value: Any) -> bool:
    return _rows(value) or (isinstance(value, dict) and all(_rows(rows) for rows in value.values()))


_FORMS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_count, "a whole number"),
    "lora_alpha": (_number, "a number"),
    "alpha": (_number, "a number"),
    "rank_pattern": (_patterns, "a table of positive numbers by patterns"),
    "alpha_pattern": (_patterns, "a table of positive numbers by patterns"),
    "target_parameters": (_texts, "a list of names"),
    "modules_to_save": (_texts, "a list of names"),
    "feedforward_modules": (lambda value: _texts(value) or _pattern(value), "a list of names or a pattern"),
    "trainable_token_indices": (_rows_by_name, "a list of rows"),
    "token_indices": (_rows_by_name, "a list of rows"),
    "hybrid_r": (_count, "a whole number"),
    "topk": (_count, "a whole number"),
    "group_size": (_count, "a whole number"),
    "random_loc_seed": (_count, "a whole number"),
    "scaling": (_number, "a number"),
    "randlora_alpha": (_number, "a number"),
    "eps": (_number, "a number"),
    "num_cayley_neumann_terms": (_terms, "a number of terms, up to 100"),
    "base_model_name_or_path": (_text, "a name"),
}
