"""What TFLite files call the inputs and outputs of a graph."""

from __future__ import annotations

import re
from collections.abc import Sequence


def identifiers(names: Sequence[str]) -> list[str]:
    """Returns the names as identifiers, all different."""
    found: list[str] = []
    for name in names:
        word = re.sub(r"\W", "_", name, flags=re.ASCII) or "tensor"
        word = f"_{word}" if word[0].isdigit() else word
        while word in found:
            word += "_"
        found.append(word)
    return found
