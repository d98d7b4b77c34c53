"""A decoder layer that hands its cache on gives the same step by step as at once, in float and quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qtool.runtime.session import Session
from tests.operators.decoding import DECODER, KEY_HEADS, STEPS, WIDTH, empty_cache, step_by_step
from tests.operators.kinds import Array, Scheme
from tests.operators.measuring import STATIC, Subject, error_between


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(DECODER, tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def quantized(decoder: Subject) -> Path:
    decoder.statically(STATIC[Scheme.CHANNEL], "int8")
    return decoder.folder / "int8.onnx"


def _at_once(session: Session, x: Array, past: tuple[Array, Array] | None = None) -> dict[str, Array]:
    key, value = past or empty_cache(len(x))
    return session.run({"x": x, "past_key": key, "past_value": value})


@pytest.mark.parametrize(("name", "least_db"), [("exported", 110.0), ("model", 110.0), ("int8", 60.0)])
def test_steps_give_what_the_whole_sequence_gives(
    decoder: Subject, quantized: Path, name: str, least_db: float
) -> None:
    path = quantized if name == "int8" else getattr(decoder, name)
    session = Session(path, threads=1)
    x = np.random.default_rng(9).uniform(-1, 1, (3, STEPS, 16)).astype(np.float32)
    # Integers are the same in both, but for values that rounding in another order puts on the other side of a border.
    assert error_between(_at_once(session, x)["y"], step_by_step(session.run, x)).db > least_db


def test_the_cache_grows_by_the_steps_that_are_fed(quantized: Path) -> None:
    session = Session(quantized, threads=1)
    x = np.random.default_rng(9).uniform(-1, 1, (2, 5, 16)).astype(np.float32)
    first = _at_once(session, x[:, :3])
    second = _at_once(session, x[:, 3:], (first["key"], first["value"]))
    assert second["key"].shape == second["value"].shape == (2, KEY_HEADS, 5, WIDTH)
    np.testing.assert_array_equal(second["key"][:, :, :3], first["key"])
    np.testing.assert_array_equal(second["value"][:, :, :3], first["value"])


def test_later_steps_do_not_change_earlier_ones(quantized: Path) -> None:
    session = Session(quantized, threads=1)
    x = np.random.default_rng(9).uniform(-1, 1, (2, 6, 16)).astype(np.float32)
    changed = x.copy()
    changed[:, 4:] *= -1
    before, after = _at_once(session, x)["y"], _at_once(session, changed)["y"]
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert np.abs(after[:, 4:] - before[:, 4:]).max() > 0.1
