"""Models that do not fit into memory side by side are compared a part at a time, and are not timed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qtool.runtime.available_memory import available_bytes

_AVAILABLE = "qtool.workflows.report.report_times.available_bytes"


def _report(run: Any, pair: Any, *more: str) -> Any:
    return run("report", pair.float_model, pair.quantized_model, "--data", pair.data, *more)


def test_outputs_are_compared_as_in_one_piece(run: Any, pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _report(run, pair, "--json", "--no-latency").json
    monkeypatch.setattr(_AVAILABLE, lambda: 1000)
    outcome = _report(run, pair, "--json", "--layers")
    assert outcome.code == 0, outcome.err
    assert "their outputs are compared a part at a time" in " ".join(outcome.err.split())
    (before,), (after,) = whole["quantized_models"], outcome.json["quantized_models"]
    assert after["accuracy"] == before["accuracy"]
    assert after["fidelity"][0]["sqnr_db"] == pytest.approx(before["fidelity"][0]["sqnr_db"], abs=0.1)
    assert after["latency"] is None
    assert after["memory"]["peak_bytes"] is None
    assert outcome.json["rounds"] == 0


def test_a_gate_on_time_is_refused(run: Any, pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_AVAILABLE, lambda: 1000)
    outcome = _report(run, pair, "--fail-if", "speedup < 1.5")
    assert outcome.code == 2
    assert "speedup" in outcome.err


def test_models_that_fit_are_timed(run: Any, pair: Any, monkeypatch: pytest.MonkeyPatch, without_memory: None) -> None:
    monkeypatch.setattr(_AVAILABLE, lambda: 1 << 40)
    outcome = _report(run, pair, "--json", "--rounds", "2")
    assert outcome.code == 0, outcome.err
    assert outcome.json["rounds"] == 2


def _write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({}, "", 8_000 * 1024),
        (
            {
                "job/memory.max": "5000000",
                "job/memory.current": "2000000",
                "job/memory.stat": "anon 1\ninactive_file 300\nactive_file 20\nslab 7\n",
            },
            "0::/job\n",
            3_000_320,
        ),
        (
            {
                "memory/job/memory.limit_in_bytes": "5000000",
                "memory/job/memory.usage_in_bytes": "4999000",
                "memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 40\ntotal_active_file 2\n",
            },
            "3:cpu:/x\n2:memory:/job\n",
            1042,
        ),
        ({"memory.max": "900", "memory.current": "1000", "memory.stat": ""}, "0::/docker/abc\n", 0),
        ({"memory.max": "max", "memory.current": "1000"}, "0::/\n", 8_000 * 1024),
        (
            {"a/memory.max": "700", "a/memory.current": "100", "a/b/memory.max": "900", "a/b/memory.current": "100"},
            "0::/a/b\n",
            600,
        ),
    ],
)
def test_the_least_of_system_and_groups_is_available(
    tmp_path: Path, files: dict[str, str], own: str, expected: int
) -> None:
    folder = _write(tmp_path, {"own": own, "meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n", **files})
    assert available_bytes(groups=folder, own_groups=folder / "own", system=folder / "meminfo") == expected


def test_a_system_that_does_not_tell_has_no_figure(tmp_path: Path) -> None:
    assert available_bytes(groups=tmp_path, own_groups=tmp_path / "own", system=tmp_path / "meminfo") is None


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells in /proc what a process takes")
def test_a_limit_of_the_shell_counts() -> None:
    told = "import resource, sys; from qtool.runtime.available_memory import available_bytes\n"
    told += "resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30)); print(available_bytes())"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert 500_000_000 < int(done.stdout) < 1 << 30
