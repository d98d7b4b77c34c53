"""The process of ``fresh_process.py``: ``python -m qtool.metrics.memory_probe TASK``, with TASK in JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from qtool.backends.runtimes import runtime_named


def peak_bytes() -> int | None:
    """Returns the peak resident memory of this process in bytes; None where the system does not report it."""
    if sys.platform == "win32":
        return _windows_peak()
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: on Linux a process starts with the value of the one that started it.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _windows_peak() -> int | None:
    """Asks psapi, https://learn.microsoft.com/windows/win32/api/psapi/ns-psapi-process_memory_counters."""
    import ctypes

    class Counters(ctypes.Structure):
        _fields_ = (
            ("cb", ctypes.c_uint32),
            ("page_faults", ctypes.c_uint32),
            ("peak_working_set", ctypes.c_size_t),
            ("working_set", ctypes.c_size_t),
            ("pools_and_page_file", ctypes.c_size_t * 6),
        )

    counters = Counters(cb=ctypes.sizeof(Counters))
    # On 64-bit Windows, the only one that onnxruntime supports, system calls take C's own calling convention.
    kernel, psapi = ctypes.CDLL("kernel32"), ctypes.CDLL("psapi")
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    psapi.GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.POINTER(Counters), ctypes.c_uint32)
    if not psapi.GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb):
        return None
    return int(counters.peak_working_set)


def _main() -> None:
    task = json.loads(sys.argv[1])
    with np.load(task["batch"]) as batch:
        feeds = {name: batch[f"arr_{place}"] for place, name in enumerate(task["inputs"])}
    runtime = runtime_named(task["runtime"])
    runtime.load()
    before = peak_bytes()
    start = time.perf_counter()
    with runtime.open_file(Path(task["model"]), threads=task["threads"]) as session:
        session.run(feeds)
    seconds = time.perf_counter() - start
    sys.stdout.write(json.dumps({"before": before, "peak": peak_bytes(), "seconds": seconds}))


if __name__ == "__main__":
    _main()
