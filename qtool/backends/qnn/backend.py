"""The backend QNN."""

from __future__ import annotations

from qtool.backends.compiler import CompilerBackend
from qtool.backends.qdq_placement.every_tensor import place
from qtool.backends.qnn.rules import RULES
from qtool.backends.qnn.targets import TARGETS

BACKEND = CompilerBackend(name="qnn", targets=TARGETS, placement=place, rules=RULES)
