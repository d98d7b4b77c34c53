"""What holds for every test: property tests draw the same examples in each run, and slow machines are no failures."""

from importlib.metadata import version

import pytest
from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


@pytest.fixture
def runtime() -> tuple[int, ...]:
    """The version of onnxruntime that is installed, to the minor number."""
    return tuple(int(part) for part in version("onnxruntime").split(".")[:2])
