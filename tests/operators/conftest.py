"""Makes the exports of many small modules quick."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.operators.exporter_registry import remembered_registry


@pytest.fixture(scope="session", autouse=True)
def one_registry() -> Iterator[None]:
    """Shares torch's registry of operators among all exports."""
    with remembered_registry():
        yield


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times nothing for longer than a run: no test here looks at times."""
    monkeypatch.setattr("qtool.metrics.latency._TURN_SECONDS", 0.0)
