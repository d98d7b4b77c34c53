"""What becomes of scales as the values behind their integers change."""

from __future__ import annotations

from enum import StrEnum


class ScalePolicy(StrEnum):
    """Says what becomes of the scales of integers when what they stand for changes.

    GROW keeps them but where values outgrow their integers; KEEP keeps all of them and clips; RECOMPUTE takes those
    that the largest value of each channel needs.
    """

    GROW = "grow"
    KEEP = "keep"
    RECOMPUTE = "recompute"
