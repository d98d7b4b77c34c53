"""The backend TensorRT."""

from __future__ import annotations

from qtool.backends.compiler import CompilerBackend
from qtool.backends.qdq_placement.layer_inputs import place
from qtool.backends.tensorrt.rules import RULES
from qtool.backends.tensorrt.targets import TARGETS

BACKEND = CompilerBackend(name="tensorrt", targets=TARGETS, placement=place, rules=RULES)
