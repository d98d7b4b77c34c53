"""Which calibration samples decide, and which ones shape what is decided about."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qtool.calib.specs import Feed
from qtool.graph.specs import model_specs
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.quantize.data_request import DataRequest
from qtool.workflows.quantize.holdout_split import HoldoutSplit
from qtool.workflows.tune.sample_selection import spread_batches
from qtool.workflows.tune.tuning_split import TuningSplit

_MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
passing (float[1, 2] x) => (float[1, 2] y) { y = Relu(x) }
"""


def _search_samples(folder: Path, count: int, *, evaluation_samples: int) -> TuningSplit:
    """Returns samples whose values are their numbers."""
    data = DataRequest(source=str(_numbered(folder, count)))
    holdout = HoldoutSplit.of(count)
    samples = CheckSamples(dataset=data.open(), data=data, holdout=holdout)
    return TuningSplit(ir.from_onnx_text(_MODEL), samples, evaluation_samples=evaluation_samples)


def _numbered(folder: Path, count: int) -> Path:
    np.savez(folder / "numbers.npz", x=np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1))
    return folder / "numbers.npz"


def _numbers(feeds: Iterable[Feed]) -> list[int]:
    return [int(feed["x"][0, 0]) for feed in feeds]


@pytest.mark.parametrize(("count", "evaluation_samples"), [(96, 32), (96, 64), (20, 64), (3, 32), (2, 2)])
def test_samples_that_judge_shape_nothing(tmp_path: Path, count: int, evaluation_samples: int) -> None:
    samples = _search_samples(tmp_path, count, evaluation_samples=evaluation_samples)
    evaluation = _numbers(samples.evaluation)
    assert 0 < len(evaluation) <= min(evaluation_samples, count // 2)
    for others in (_numbers(samples.some(12)), _numbers(samples.spread(32))):
        assert others
        assert not set(others) & set(evaluation)


def test_samples_that_were_held_back_stay_so(tmp_path: Path) -> None:
    samples = _search_samples(tmp_path, 80, evaluation_samples=32)
    given = {*_numbers(samples.evaluation), *_numbers(samples.spread(80)), *_numbers(samples.some(80))}
    assert given == set(range(80)) - set(range(9, 80, 10))


def test_samples_that_other_evidence_needs_are_not_given(tmp_path: Path) -> None:
    data = DataRequest(source=str(_numbered(tmp_path, 40)))
    samples = CheckSamples(dataset=data.open(), data=data, holdout=HoldoutSplit.of(40))
    model = ir.from_onnx_text(_MODEL)
    feeds = samples.holdout.used(data.feeds(samples.dataset, *model_specs(model)))
    held_back = spread_batches(feeds, samples=18, available=36)
    left = TuningSplit(model, samples, evaluation_samples=8, held_back=held_back)
    given = {*_numbers(left.evaluation), *_numbers(left.spread(40)), *_numbers(left.some(40))}
    assert len(held_back.rows) == 18
    assert given == set(range(40)) - set(range(9, 40, 10)) - set(_numbers(held_back.feeds))
    assert set(_numbers(left.spread_over_all(40))) == given


def test_both_kinds_come_from_all_over_the_data(tmp_path: Path) -> None:
    samples = _search_samples(tmp_path, 100, evaluation_samples=20)
    for numbers in (_numbers(samples.evaluation), _numbers(samples.some(10)), _numbers(samples.spread(10))):
        assert min(numbers) < 15
        assert max(numbers) > 75


def test_a_final_fit_may_see_them_all(tmp_path: Path) -> None:
    samples = _search_samples(tmp_path, 9, evaluation_samples=4)
    assert _numbers(samples.spread_over_all(9)) == list(range(9))


def test_a_single_sample_has_to_do_for_both(tmp_path: Path) -> None:
    samples = _search_samples(tmp_path, 1, evaluation_samples=32)
    assert _numbers(samples.evaluation) == _numbers(samples.some(4)) == _numbers(samples.spread(8)) == [0]
