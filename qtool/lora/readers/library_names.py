"""Module names of other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """A library's names of modules.

    Attributes:
        library: its name, for errors.
        names: names in transformers by those in the library; ``{}`` stands for the number of a layer.
        queries: the library's name of the query projection, where rotary pairs are adjacent rows.
        keys: the library's name of the key projection, where rotary pairs are adjacent rows.
        models: model types, by transformers' names, with that row order; others are refused where it matters. Empty
        where the adapter itself records it.
    """

    library: str
    names: Mapping[str, str]
    queries: str | None = None
    keys: str | None = None
    models: tuple[str, ...] = ()
