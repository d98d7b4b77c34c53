"""QDQ placement for OpenVINO."""

from __future__ import annotations

from qtool.backends.qdq_placement.layer_inputs import place

__all__ = ["place"]
