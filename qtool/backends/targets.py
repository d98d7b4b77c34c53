"""The values of ``--target``: the targets of all backends."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from qtool.backends.onnxruntime_cpu.targets import TARGETS as PROCESSORS
from qtool.backends.openvino.targets import TARGETS as OPENVINO
from qtool.backends.qnn.targets import TARGETS as QNN
from qtool.backends.tensorrt.targets import TARGETS as TENSORRT
from qtool.errors import UsageError
from qtool.schemes import Scheme

# Documentation and tests cover every row.
PRESETS: Mapping[str, Scheme] = {**PROCESSORS, **TENSORRT, **QNN, **OPENVINO}
AUTO = "auto"


def preset(name: str) -> Scheme:
    """Returns the preset of that name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in PRESETS:
        near = get_close_matches(name, (AUTO, *PRESETS), n=1, cutoff=0.0)
        raise UsageError(
            f"there is no target '{name}'", fix=f"did you mean '{near[0]}'? all of them: {', '.join((AUTO, *PRESETS))}"
        )
    return PRESETS[name]
