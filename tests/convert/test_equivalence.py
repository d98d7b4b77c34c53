from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from qtool.errors import InputError
from qtool.formats.errors import FormatError
from qtool.formats.torch.example_inputs import InputSpec
from qtool.progress import Silent
from qtool.workflows.convert.program_check import ProgramComparison, compare_programs

SPEC = InputSpec(name="x", dims=("n", "length"), dtype=np.dtype(np.float32))


class Noting(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def compare(
    reference: Callable[[np.ndarray], Any], converted: Callable[[np.ndarray], Any], progress: Silent | None = None
) -> tuple[ProgramComparison, ...]:
    return compare_programs(
        [SPEC],
        None,
        reference=lambda feed: [reference(feed["x"])],
        converted=lambda feed: {"y": converted(feed["x"])},
        progress=progress or Silent(),
    )


@contextmanager
def refused(said: str) -> Iterator[None]:
    with pytest.raises(InputError, match=said):
        yield


def test_each_free_dimension_is_tried_at_two_sizes_and_on_one_sample() -> None:
    sizes = [comparison.sizes for comparison in compare(np.sin, np.sin)]
    assert sizes == [{"n": 2, "length": 64}, {"n": 3, "length": 128}, {"n": 1, "length": 64}]


def test_the_difference_is_absolute_and_relative_to_the_largest_value() -> None:
    comparisons = compare(lambda x: np.full_like(x, 200.0), lambda x: np.full_like(x, 200.1))
    assert comparisons[0].absolute == pytest.approx(0.1, rel=1e-3)
    assert comparisons[0].relative == pytest.approx(0.0005, rel=1e-3)


def test_a_difference_of_more_than_a_thousandth_is_an_error() -> None:
    with refused("output 'y' differs .* with n=2, length=64"):
        compare(np.sin, lambda x: np.sin(x) + 0.01)


def test_a_program_that_is_wrong_at_the_second_size_only_is_caught() -> None:
    with refused("with n=3, length=128"):
        compare(np.sin, lambda x: np.sin(x) if x.shape[1] == 64 else -np.sin(x))


def test_a_program_that_is_wrong_on_a_single_sample_only_is_caught() -> None:
    with refused("with n=1, length=64"):
        compare(np.sin, lambda x: np.sin(x) if len(x) > 1 else -np.sin(x))


def test_integers_may_differ_in_one_of_a_thousand_values() -> None:
    expected = np.arange(4000)

    def changed(count: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: np.where(expected < count, -1, expected)

    assert compare(lambda x: expected, changed(3))[0].relative == pytest.approx(3 / 4000)
    with refused("is wrong"):
        compare(lambda x: expected, changed(5))


def test_masked_values_may_be_infinite_where_the_reference_is() -> None:
    masked = np.array([1.0, -np.inf, np.nan])
    assert compare(lambda x: masked, lambda x: masked)[0].absolute == 0
    with refused("NaN or infinite where the model's is not"):
        compare(lambda x: np.ones(3), lambda x: masked)
    with refused("NaN or infinite where the model's is not"):
        compare(lambda x: masked, lambda x: np.ones(3))
    with refused("no finite value"):
        compare(lambda x: np.full(3, np.nan), lambda x: np.full(3, np.nan))


def test_another_shape_is_refused_unless_the_module_squeezes_a_single_sample() -> None:
    assert len(compare(lambda x: np.squeeze(np.sin(x[:, :1]), 1), lambda x: np.sin(x[:, :1]))) == 3
    with refused("has the shape"):
        compare(np.sin, lambda x: np.sin(x[:, 1:]))


def test_lengths_that_the_model_itself_refuses_are_told() -> None:
    def picky(x: np.ndarray) -> np.ndarray:
        if x.shape[1] != 64:
            raise FormatError("too long", fix="shorten it")
        return np.sin(x)

    progress = Noting()
    sizes = [comparison.sizes for comparison in compare(picky, np.sin, progress)]
    assert sizes == [{"n": 2, "length": 64}, {"n": 3, "length": 64}, {"n": 1, "length": 64}]
    assert progress.notes == ["length compared at one length only: the model itself fails at others"]


def cropped(crop: int, empty: str) -> Callable[[np.ndarray], np.ndarray]:
    """Takes ``crop`` values off each end, and does with inputs that are too short what libraries do."""

    def run(x: np.ndarray) -> np.ndarray:
        if x.shape[1] > 2 * crop:
            kept: np.ndarray = x[:, crop:-crop]
            return kept
        if empty == "stops":
            raise FormatError("a negative length", fix="export it again")
        return x[:, :0] if empty == "nothing" else np.full_like(x[:, :1], np.nan)

    return run


@pytest.mark.parametrize("empty", ["stops", "nothing", "nan"])
@pytest.mark.parametrize("crop", [40, 700, 5000])
def test_longer_inputs_are_tried_where_a_program_takes_no_short_ones(crop: int, empty: str) -> None:
    progress = Noting()
    comparisons = compare(cropped(crop, empty), cropped(crop, empty), progress)
    assert all(comparison.sizes["length"] > 2 * crop for comparison in comparisons)
    assert {comparison.sizes["n"] for comparison in comparisons} == {1, 2, 3}
    assert any("takes no shorter inputs" in note for note in progress.notes)


def test_a_program_that_takes_no_length_is_refused_with_the_option_that_names_one() -> None:
    with pytest.raises(FormatError, match="a negative length") as caught:
        compare(cropped(10**9, "stops"), np.sin)
    assert caught.value.fix == "give lengths that the model takes instead of length: --input-shape x=n,length"
