"""Runs models in another Python environment, on orders from standard input: ``python version_probe.py``.

It needs numpy and onnxruntime, and nothing of qtool, so that every environment and every machine that has the two can
run it; ``foreign_runtime.py`` is the other side. Each line that comes in is an order, and is answered with one line,
both in JSON. An order that fails is answered with ``error``, and ends the process.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from typing import Any

import numpy as np

# Short runs are repeated within a turn that is longer than what the system gives to a process at once: other processes
# would take all of one turn and nothing of the next.
_TURN_SECONDS = 0.02
_LARGEST_TURN = 50
_WARM_UPS = 3
# That of Windows has steps of 16 ms.
_CLOCK_IS_FINE = time.get_clock_info("process_time").resolution < 1e-4
# Worker threads of what ran before keep spinning for some milliseconds; runs shorter than this would feel them.
_SETTLED_SECONDS = 0.1


class Probe:
    """Holds one model open."""

    def __init__(self) -> None:
        """Starts without a model."""
        self._session: Any = None
        self._feeds: dict[str, Any] = {}
        self._repeats = 0
        self._settles = False

    def who(self, order: dict[str, Any]) -> dict[str, Any]:
        """Returns the version of onnxruntime, and the machine that this process sees."""
        import onnxruntime as ort

        return {"onnxruntime": ort.__version__, "numpy": np.__version__, "machine": platform.machine()}

    def open(self, order: dict[str, Any]) -> dict[str, Any]:
        """Opens ``model`` at ``level`` with ``threads``, and writes the optimized graph to ``optimized_to``.

        ``fuses_signed`` makes s8 activations fuse as they are, as on ARM.
        """
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = order["threads"]
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, order["level"])
        # Worker threads that wait busily would take the time of whatever runs next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if order["fuses_signed"]:
            options.add_session_config_entry("session.qdqisint8allowed", "1")
        if order["optimized_to"]:
            options.optimized_model_filepath = order["optimized_to"]
            # A message holds 2 GiB at most.
            weights = os.path.basename(order["optimized_to"]) + ".data"  # noqa: PTH119 - text in, text out
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "4096")
        self._session, self._repeats = None, 0
        self._session = ort.InferenceSession(order["model"], options, providers=["CPUExecutionProvider"])
        return {"outputs": [node.name for node in self._session.get_outputs()]}

    def run(self, order: dict[str, Any]) -> dict[str, Any]:
        """Runs the model on the arrays in ``feeds``, whose names are ``inputs``, and writes all outputs to ``to``."""
        with np.load(order["feeds"]) as stored:
            arrays = [stored[f"arr_{place}"] for place in range(len(order["inputs"]))]
        # Files hold texts of one length, which onnxruntime does not take.
        arrays = [array.astype(object) if array.dtype.kind == "U" else array for array in arrays]
        self._feeds = dict(zip(order["inputs"], arrays))  # noqa: B905 - older Pythons have no strict
        values = [_array(value) for value in self._session.run(None, self._feeds)]
        np.savez(order["to"], *(value.astype("U") if value.dtype.kind == "O" else value for value in values))
        return {}

    def time(self, order: dict[str, Any]) -> dict[str, Any]:
        """Runs the model on the arrays of the last ``run`` for one turn, and returns the seconds of one run."""
        if not self._repeats:
            for _ in range(_WARM_UPS):
                seconds = self._turn(1)
            self._repeats = max(1, min(_LARGEST_TURN, math.ceil(_TURN_SECONDS / seconds)))
            self._settles = seconds < _SETTLED_SECONDS
        elif self._settles:
            self._turn(1)
        return {"seconds": self._turn(self._repeats)}

    def _turn(self, repeats: int) -> float:
        """Returns the seconds of one run, without those in which all of this process waits for a processor."""
        start, computed = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            self._session.run(None, self._feeds)
        passed, computed = time.perf_counter() - start, time.process_time() - computed
        return max(min(passed, computed) if _CLOCK_IS_FINE else passed, 1e-9) / repeats


def _array(value: Any) -> Any:
    """Returns an output as one array: the values of a sequence or a map behind each other."""
    if isinstance(value, np.ndarray):
        return value
    if value is None:
        return np.zeros(0, np.float32)
    if isinstance(value, dict):
        return np.asarray(list(value.values()))
    if isinstance(value, list):
        return np.concatenate([np.zeros(0, np.float32), *(_array(one).reshape(-1) for one in value)])
    return np.asarray(value)


def _main() -> None:
    # Whatever libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    probe = Probe()
    orders = {"who": probe.who, "open": probe.open, "run": probe.run, "time": probe.time}
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = orders[order["do"]](order)
        except Exception as error:
            answers.write(json.dumps({"error": str(error) or type(error).__name__}) + "\n")
            answers.flush()
            raise
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _main()
