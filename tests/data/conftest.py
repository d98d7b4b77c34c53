"""Ways to describe inputs and to catch what the data has to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from qtool.calib.errors import CalibError
from qtool.calib.specs import Dim, TensorSpec


@pytest.fixture
def image_input() -> TensorSpec:
    return TensorSpec("image", np.dtype(np.float32), ("batch", 3, 4, 5))


@pytest.fixture
def floats() -> Callable[..., TensorSpec]:
    """Makes a float32 input of a name and dimensions."""

    def make(name: str, *shape: Dim) -> TensorSpec:
        return TensorSpec(name, np.dtype(np.float32), shape)

    return make


@pytest.fixture
def refuses() -> Callable[..., AbstractContextManager[None]]:
    """Expects an error whose problem and fix hold these words, each line being one line."""

    @contextmanager
    def expect(problem: str, fix: str) -> Iterator[None]:
        with pytest.raises(CalibError) as caught:
            yield
        assert problem in caught.value.problem
        assert fix in caught.value.fix
        assert "\n" not in caught.value.problem + caught.value.fix

    return expect


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for samples."""
    path = tmp_path / "samples"
    path.mkdir()
    return path
