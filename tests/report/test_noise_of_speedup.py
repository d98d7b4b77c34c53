"""What a gate on the speedup makes of a machine that is never quiet."""

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qtool.progress import Silent
from qtool.reporting.gates import parse_gate
from qtool.reporting.model import Report
from qtool.workflows.report.report import ReportRequest, compare
from qtool.workflows.report.report_data import DataSource
from qtool.workflows.report.report_times import TimingOptions

Pair = Any  # the dataclass in conftest.py, which tests cannot import


def _spin() -> None:
    while True:
        sum(range(1000))


@pytest.fixture
def load() -> Iterator[None]:
    """Keeps two cores busy."""
    workers = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    yield
    for worker in workers:
        worker.terminate()
        worker.join()


@pytest.fixture
def report_on(pair: Pair, without_memory: None) -> Callable[..., Report]:
    def run(quantized: Path, *gates: str) -> Report:
        request = ReportRequest(
            float_model=pair.float_model,
            quantized_models=(quantized,),
            datasets=(DataSource(source=str(pair.data)),),
            times=TimingOptions(threads=1),
            gates=tuple(map(parse_gate, gates)),
        )
        return compare(request, Silent())

    return run


@pytest.mark.slow
def test_a_model_never_fails_a_speed_gate_beside_itself(
    pair: Pair, report_on: Callable[..., Report], load: None
) -> None:
    reports = [report_on(pair.float_model, "speedup < 1", "speedup > 1") for _ in range(50)]
    failed = [verdict.message for report in reports for verdict in report.verdicts if verdict.outcome == "failed"]
    assert not failed


@pytest.mark.slow
def test_reports_on_the_same_pair_agree_under_load(pair: Pair, report_on: Callable[..., Report], load: None) -> None:
    agreeing = 0
    for _ in range(20):
        a, b = (report_on(pair.quantized_model).comparisons[0].speedup for _ in range(2))
        assert a is not None
        assert b is not None
        agreeing += max(a.low, b.low) <= min(a.high, b.high)
    assert agreeing >= 19
