import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qtool.errors import InputError
from qtool.metrics.fidelity import FidelityMeter, OutputFidelity

VALUES = st.floats(-1e4, 1e4, width=32)


def compare(*batches: tuple[np.ndarray, np.ndarray]) -> OutputFidelity:
    meter = FidelityMeter()
    for reference, candidate in batches:
        meter.add({"y": reference}, {"y": candidate})
    (result,) = meter.results()
    return result


def noisy(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    a = random.normal(size=shape).astype(np.float32)
    return a, (a + 0.1 * random.normal(size=shape)).astype(np.float32)


def test_figures_match_their_formulas_in_numpy() -> None:
    a, b = noisy((50, 7))
    result = compare((a, b))
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert result.sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()), rel=1e-12)
    assert result.cosine == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-12)
    assert result.max_abs_error == pytest.approx(np.abs(x - y).max(), rel=1e-12)
    assert result.mean_abs_error == pytest.approx(np.abs(x - y).mean(), rel=1e-12)
    assert result.top1_agreement == (a.argmax(1) == b.argmax(1)).mean()
    assert result.equal_share is None
    assert result.values == 350


def test_outputs_longer_than_one_stretch_are_summed_whole() -> None:
    a, b = noisy((3, 400_000), seed=1)
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert compare((a, b)).sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()), rel=1e-10)


@settings(deadline=None, max_examples=60)
@given(
    pairs=arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(2, 5), st.just(2)), elements=VALUES),
    cuts=st.lists(st.integers(0, 12), max_size=4),
)
def test_the_split_into_batches_does_not_matter(pairs: np.ndarray, cuts: list[int]) -> None:
    a, b = pairs[..., 0], pairs[..., 1]
    whole = compare((a, b))
    parts = compare(*zip(np.split(a, sorted(cuts)), np.split(b, sorted(cuts)), strict=True))
    assert parts.max_abs_error == whole.max_abs_error
    assert parts.top1_agreement == whole.top1_agreement
    assert parts.values == whole.values
    for field in ("sqnr_db", "cosine", "mean_abs_error"):
        assert getattr(parts, field) == pytest.approx(getattr(whole, field), rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(a=arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=VALUES))
def test_an_output_is_identical_to_itself(a: np.ndarray) -> None:
    result = compare((a, a.copy()))
    assert result.sqnr_db == math.inf
    assert result.cosine == pytest.approx(1.0, abs=1e-12)
    assert result.max_abs_error == result.mean_abs_error == 0
    assert result.identical


def test_noise_on_an_output_of_zeros_is_all_noise() -> None:
    result = compare((np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)))
    assert result.sqnr_db == -math.inf
    assert result.cosine == 0
    assert not result.identical


def test_a_nan_in_the_candidate_is_counted_and_poisons_the_figures() -> None:
    a, b = noisy((4, 3))
    b[2, 1] = np.nan
    result = compare((a, b))
    assert result.non_finite == 1
    assert math.isnan(result.sqnr_db or 0)
    assert math.isnan(result.cosine or 0)
    assert not result.identical


def test_a_row_with_a_nan_agrees_with_nothing() -> None:
    a = np.array([[0, 5, 0], [1, 0, 0]], np.float32)
    b = np.array([[0, np.nan, 0], [1, 0, 0]], np.float32)
    assert compare((a, b)).top1_agreement == 0.5


def test_infinities_that_both_models_share_are_left_out() -> None:
    a, b = noisy((4, 3))
    plain = compare((a[1:], b[1:]))
    a[0], b[0] = -np.inf, -np.inf
    result = compare((a, b))
    assert result.non_finite == 0
    assert result.sqnr_db == pytest.approx(plain.sqnr_db)
    assert result.values == plain.values


def test_an_infinity_in_one_model_only_is_counted() -> None:
    a, b = noisy((4, 3))
    a[0, 0], b[1, 1] = np.inf, -np.inf
    assert compare((a, b)).non_finite == 2


def test_integer_outputs_have_a_share_of_equal_values_and_no_noise() -> None:
    result = compare((np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])))
    assert result.equal_share == 0.75
    assert result.sqnr_db is None
    assert result.top1_agreement is None
    assert not result.identical
    assert compare((np.array([1, 2]), np.array([1, 2]))).identical


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3, 4)])
def test_only_rows_of_classes_have_a_top1_agreement(shape: tuple[int, ...]) -> None:
    assert compare(noisy(shape)).top1_agreement is None


def test_embeddings_name_no_class() -> None:
    a, b = noisy((20, 16))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    assert compare((a, b)).top1_agreement is None
    # One row of another length, and they are scores again.
    assert compare((a, b), (2 * a[:1], b[:1])).top1_agreement is not None


def test_one_hot_probabilities_are_no_embeddings() -> None:
    a = np.eye(4, dtype=np.float32)
    assert compare((a, a)).top1_agreement == 1


def test_batches_of_different_shape_are_counted_and_zeros_stand_for_what_one_lacks() -> None:
    a, b = noisy((4, 3))
    result = compare((a, b), (a, b[:2]))
    assert result.unmatched_batches == 1
    assert result.values == 24
    padded = np.concatenate([b[:2], np.zeros_like(b[2:])])
    assert result.sqnr_db == pytest.approx(compare((a, b), (a, padded)).sqnr_db)
    assert not compare((a, a), (a, a[:2])).identical


def test_outputs_keep_their_order_and_names() -> None:
    meter = FidelityMeter()
    a, b = noisy((2, 2))
    meter.add({"second": a, "first": a}, {"first": b, "second": a})
    assert [(result.name, result.identical) for result in meter.results()] == [("second", True), ("first", False)]


def test_a_missing_output_is_named() -> None:
    a, _ = noisy((2, 2))
    with pytest.raises(InputError, match="'y'"):
        FidelityMeter().add({"y": a}, {"z": a})


def test_half_precision_is_compared_without_overflow() -> None:
    a = np.full((2, 2), 60000, np.float16)
    b = np.full((2, 2), -60000, np.float16)
    result = compare((a, b))
    assert result.max_abs_error == 2 * float(a[0, 0])
    assert result.cosine == -1
