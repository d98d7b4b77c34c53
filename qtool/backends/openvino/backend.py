"""The backend OpenVINO."""

from __future__ import annotations

from qtool.backends.compiler import CompilerBackend
from qtool.backends.openvino.targets import TARGETS
from qtool.backends.qdq_placement.layer_inputs import place

BACKEND = CompilerBackend(name="openvino", targets=TARGETS, placement=place)
