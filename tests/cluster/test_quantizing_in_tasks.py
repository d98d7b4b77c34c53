"""``qtool quantize --cluster``: what its tasks are, that they change no byte, and what is done again after an end."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qtool.cluster.work import InThisProcess, Work

_SMALLEST = ("--machine-profile", "shipped", "--smallest")
_CALIBRATION, _RANGES, _LAYERS = "CalibrationWork", "TensorNoiseWork", "LayerNoiseWork"
_ROUNDING = "GuidedRoundingWork"


class _Elsewhere(InThisProcess):
    """Does tasks in another order than asked for, as other processes would: with pickled copies of work and task."""

    count = 3

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.done: Counter[str] = Counter()

    def map(self, work: Work[Any], tasks: Iterable[Any]) -> Iterator[tuple[int, bytes]]:
        message = pickle.dumps(work)
        numbered = list(enumerate(tasks))
        random.Random(7).shuffle(numbered)
        with pickle.loads(message).opened() as first, pickle.loads(message).opened() as second:
            for place, (number, task) in enumerate(numbered):
                if self.done.total() == self.most:
                    raise _PowerCut
                result = (first, second)[place % 2](pickle.loads(pickle.dumps(task)))
                self.done[type(work).__name__] += 1
                yield number, result


class _PowerCut(BaseException):
    """Ends a run wherever it is."""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., _Elsewhere]:
    """Makes workers that ``--cluster`` names from then on."""

    def made(most: int | None = None) -> _Elsewhere:
        workers = _Elsewhere(most)

        @contextmanager
        def given(*_: object, **__: object) -> Iterator[_Elsewhere]:
            yield workers

        monkeypatch.setattr("qtool.cluster.ray_cluster.ray_workers", given)
        return workers

    return made


def _quantized(run: Any, model: Path, name: str, *options: object) -> Any:
    outcome = run("quantize", model, "--calib-data", "data.npz", "-o", name, *_SMALLEST, *options)
    assert outcome.code == 0, outcome.err
    return outcome


def test_calibration_ranges_layers_and_gptq_are_tasks_that_change_no_byte(
    run: Any, deep_model: Path, elsewhere: Callable[..., _Elsewhere], cache: Path
) -> None:
    _quantized(run, deep_model, "one.onnx", "--min-sqnr", "45")
    workers = elsewhere()
    _quantized(run, deep_model, "all.onnx", "--min-sqnr", "45", "--cluster", "local:3")
    assert Path("all.onnx").read_bytes() == Path("one.onnx").read_bytes()
    # Forty samples in batches of four, one of which is held out.
    assert workers.done[_CALIBRATION] == 9
    # Every tensor, and once more for those whose proposals differ.
    assert workers.done[_RANGES] > 13
    assert workers.done[_LAYERS] == 13
    assert workers.done[_ROUNDING] >= 13
    assert not [path for path in (cache / "qtool").rglob("*") if path.is_file()]


def test_a_search_for_float_layers_without_a_goal_has_tasks_too(
    run: Any, deep_model: Path, elsewhere: Callable[..., _Elsewhere]
) -> None:
    options = ("--method", "minmax", "--no-gptq", "--max-float", "0.5")
    _quantized(run, deep_model, "one.onnx", *options)
    workers = elsewhere()
    _quantized(run, deep_model, "all.onnx", *options, "--cluster", "local:3")
    assert Path("all.onnx").read_bytes() == Path("one.onnx").read_bytes()
    assert workers.done == {_CALIBRATION: 9, _LAYERS: 13}


@pytest.mark.slow
@pytest.mark.parametrize("most", [5, 20, 40])
def test_a_run_that_was_cut_off_goes_on_with_what_was_found(
    run: Any, deep_model: Path, elsewhere: Callable[..., _Elsewhere], most: int
) -> None:
    # Rounding is done again.
    everything, options = elsewhere(), ("--min-sqnr", "45", "--no-gptq", "--cluster", "local:3")
    _quantized(run, deep_model, "all.onnx", *options)
    before = elsewhere(most)
    with pytest.raises(_PowerCut):
        _quantized(run, deep_model, "again.onnx", *options)
    after = elsewhere()
    _quantized(run, deep_model, "again.onnx", *options)
    assert before.done.total() == most
    assert before.done + after.done == everything.done
    assert Path("again.onnx").read_bytes() == Path("all.onnx").read_bytes()


@pytest.mark.slow
def test_a_manifest_knows_nothing_of_workers_and_repeats_the_run_with_or_without(
    run: Any, deep_model: Path, elsewhere: Callable[..., _Elsewhere]
) -> None:
    elsewhere()
    _quantized(run, deep_model, "all.onnx", "--cluster", "local:3")
    first = Path("all.onnx").read_bytes()
    assert "cluster" not in Path("all.manifest.json").read_text()
    workers = elsewhere()
    for options in ((), ("--cluster", "local:3")):
        outcome = run("quantize", deep_model, "--locked", "all.manifest.json", "-o", "again.onnx", "--force", *options)
        assert outcome.code == 0, outcome.err
        assert Path("again.onnx").read_bytes() == first
    assert workers.done[_RANGES] > 0


def test_the_option_is_refused_where_nothing_runs_as_a_task(run: Any, model: Path) -> None:
    assert run("calibrate", model, "--calib-data", "data.npz", "-o", "stats.npz").code == 0
    for options, problem in (
        (("--calib-data", "data.npz", "--scheme", "dynamic"), "no effect with --scheme dynamic"),
        (("--scheme", "weights"), "no effect with --scheme weights"),
        (("--calib-stats", "stats.npz"), "no effect with --calib-stats and no accuracy goal"),
    ):
        outcome = run("quantize", model, "--cluster", "local:2", *options)
        assert outcome.code == 2
        assert f"--cluster has {problem}" in outcome.err
