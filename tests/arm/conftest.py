"""What runs on emulated 64-bit ARM machines: `make test-arm` installs what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.arm.emulated_runtime import EmulatedRuntime
from tests.arm.machines import MACHINES, why_missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.arm)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", params=MACHINES, ids=lambda machine: machine.name)
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedRuntime]:
    """onnxruntime on each of the machines."""
    with EmulatedRuntime(request.param, tmp_path_factory.mktemp("machines") / request.param.name) as emulated:
        yield emulated
