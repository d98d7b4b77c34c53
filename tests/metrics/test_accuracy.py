import numpy as np
import pytest

from qtool.errors import InputError
from qtool.metrics.accuracy import Accuracy, AccuracyMeter


def measure(scores: np.ndarray, labels: np.ndarray, batch: int = 7) -> Accuracy:
    meter = AccuracyMeter(labels)
    for first in range(0, len(scores), batch):
        meter.add(scores[first : first + batch])
    return meter.result()


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_top1_and_top5_match_a_full_sort(batch: int) -> None:
    random = np.random.default_rng(3)
    scores, labels = random.normal(size=(200, 12)).astype(np.float32), random.integers(12, size=200)
    order = np.argsort(-scores, axis=1, kind="stable")
    result = measure(scores, labels, batch)
    assert result.top1 == (order[:, 0] == labels).mean()
    assert result.top5 == (order[:, :5] == labels[:, None]).any(axis=1).mean()
    assert result.samples == 200


def test_equal_scores_rank_as_argmax_ranks_them() -> None:
    scores = np.zeros((3, 6), np.float32)
    result = measure(scores, np.array([0, 1, 5]))
    assert result.top1 == pytest.approx(1 / 3)
    assert result.top5 == pytest.approx(2 / 3)


def test_five_classes_have_no_top5() -> None:
    assert measure(np.eye(5, dtype=np.float32), np.arange(5)).top5 is None


def test_a_row_with_a_nan_is_wrong() -> None:
    scores = np.eye(6, dtype=np.float32)
    scores[2, 2] = np.nan
    result = measure(scores, np.arange(6))
    assert (result.top1, result.top5) == (5 / 6, 5 / 6)


def test_a_column_of_labels_is_taken() -> None:
    assert measure(np.eye(6, dtype=np.float32), np.arange(6)[:, None]).top1 == 1


def test_one_hot_labels_are_refused_with_the_way_out() -> None:
    with pytest.raises(InputError) as caught:
        AccuracyMeter(np.eye(6))
    assert "(6, 6)" in caught.value.problem
    assert "argmax" in caught.value.fix


def test_labels_of_floats_are_refused() -> None:
    with pytest.raises(InputError, match="float64"):
        AccuracyMeter(np.array([0.0, 1.0]))


def test_labels_that_count_from_one_are_recognized() -> None:
    with pytest.raises(InputError) as caught:
        measure(np.eye(6, dtype=np.float32), np.arange(1, 7))
    assert "label 6" in caught.value.problem
    assert "labels - 1" in caught.value.fix


def test_a_negative_label_is_named() -> None:
    with pytest.raises(InputError, match="-1"):
        measure(np.eye(6, dtype=np.float32), np.array([0, 1, -1, 3, 4, 5]))


def test_too_few_labels_are_refused() -> None:
    with pytest.raises(InputError, match="3"):
        measure(np.eye(6, dtype=np.float32), np.arange(3))


def test_no_sample_is_no_accuracy() -> None:
    with pytest.raises(InputError):
        AccuracyMeter(np.arange(3)).result()
