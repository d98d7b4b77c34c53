"""What other libraries call the modules of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """Says what a library calls modules.

    Attributes:
        library: its name, for errors.
        names: names in transformers by those in the library; ``{}`` stands for the number of a layer.
        queries: the library's name of the projection to queries, where its rows go by neighbours.
        keys: likewise to keys.
        models: kinds of models, as transformers calls them, whose rows do; others are refused where it matters. Empty
            where the adapter itself tells.
    """

    library: str
    names: Mapping[str, str]
    queries: str | None = None
    keys: str | None = None
    models: tuple[str, ...] = ()
