"""A folder of arrays: one sample, one feed or several samples a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool.calib.dataset import open_dataset
from qtool.calib.specs import TensorSpec

Floats = Callable[..., TensorSpec]


def test_files_come_in_natural_order(folder: Path, floats: Floats) -> None:
    for number in (10, 9, 1, 100, 2):
        np.save(folder / f"img{number}.npy", np.full((1, 2), number, "f4"))
    feeds = open_dataset(str(folder)).feeds([floats("x", "n", 2)])
    assert [int(feed["x"][0, 0]) for feed in feeds] == [1, 2, 9, 10, 100]


def test_folders_below_are_read_too(folder: Path, floats: Floats) -> None:
    for name in ("b", "a"):
        (folder / name).mkdir()
        np.save(folder / name / "0.npy", np.full((1, 2), ord(name), "f4"))
    feeds = open_dataset(str(folder)).feeds([floats("x", "n", 2)])
    assert [chr(int(feed["x"][0, 0])) for feed in feeds] == ["a", "b"]


def test_a_file_holds_one_sample_or_several_by_its_rank(folder: Path, floats: Floats) -> None:
    np.save(folder / "1.npy", np.zeros((2,), "f4"))
    np.save(folder / "2.npy", np.ones((3, 2), "f4"))
    np.save(folder / "3.npy", np.full((1, 2), 2, "f4"))
    (feed,) = open_dataset(str(folder)).feeds([floats("x", "n", 2)], batch_size=5)
    assert feed["x"][:, 0].tolist() == [0, 1, 1, 1, 2]


def test_sequences_of_different_length_share_no_batch(folder: Path) -> None:
    inputs = [TensorSpec(name, np.dtype("i8"), ("batch", "tokens")) for name in ("ids", "mask")]
    for number, length in enumerate((5, 5, 7, 7, 7, 5)):
        np.savez(folder / f"{number}.npz", ids=np.full((1, length), number), mask=np.ones((1, length), "i8"))
    feeds = list(open_dataset(str(folder)).feeds(inputs, batch_size=2))
    assert [feed["ids"].shape for feed in feeds] == [(2, 5), (2, 7), (1, 7), (1, 5)]
    assert all(feed["mask"].shape == feed["ids"].shape for feed in feeds)


def test_feeds_without_a_common_batch_axis_stay_whole(folder: Path, floats: Floats, refuses: Any) -> None:
    inputs = [floats("sequence", "time", "batch", 3), floats("state", 2, "batch", 4)]
    for number, length in enumerate((5, 6)):
        np.savez(
            folder / f"{number}.npz", sequence=np.zeros((length, 1, 3), "f4"), state=np.full((2, 1, 4), number, "f4")
        )
    data = open_dataset(str(folder))
    assert [feed["sequence"].shape for feed in data.feeds(inputs)] == [(5, 1, 3), (6, 1, 3)]
    assert [feed["state"][0, 0, 0] for feed in data.feeds(inputs, skip=1)] == [1]
    with refuses("share no batch axis", fix="batch size of 1"):
        data.feeds(inputs, batch_size=2)


def test_a_whole_feed_of_the_wrong_first_dimension_is_refused(folder: Path, floats: Floats, refuses: Any) -> None:
    np.savez(folder / "0.npz", sequence=np.zeros((5, 1, 3), "f4"), state=np.zeros((1, 1, 4), "f4"))
    inputs = [floats("sequence", "time", "batch", 3), floats("state", 2, "batch", 4)]
    with refuses("array 'state' in samples/0.npz has the shape (1, 1, 4), the input (2, batch, 4)", fix="whole value"):
        open_dataset(str(folder)).feeds(inputs)


def test_arrays_of_one_file_with_different_lengths_are_refused(folder: Path, floats: Floats, refuses: Any) -> None:
    np.savez(folder / "0.npz", a=np.zeros((5, 3), "f4"), b=np.zeros((4, 3), "f4"))
    with refuses("samples/0.npz differ in length: 'a' 5, 'b' 4", fix="one row per sample"):
        open_dataset(str(folder)).feeds([floats("a", "n", 3), floats("b", "n", 3)])


def test_inputs_with_first_axes_of_their_own_are_fed_whole(folder: Path, floats: Floats) -> None:
    np.savez(folder / "0.npz", a=np.zeros((5, 3), "f4"), b=np.zeros((4, 3), "f4"))
    (feed,) = open_dataset(str(folder)).feeds([floats("a", "rows", 3), floats("b", "others", 3)])
    assert (len(feed["a"]), len(feed["b"])) == (5, 4)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_skip_and_limit_count_samples_across_files(folder: Path, floats: Floats, batch_size: int) -> None:
    for number in range(4):
        np.save(folder / f"{number}.npy", np.arange(3 * number, 3 * number + 3, dtype="f4")[:, None])
    feeds = open_dataset(str(folder)).feeds([floats("x", "n", 1)], batch_size=batch_size, skip=2, limit=6)
    assert np.concatenate([feed["x"] for feed in feeds])[:, 0].tolist() == [2, 3, 4, 5, 6, 7]


def test_errors_name_the_file(folder: Path, floats: Floats, refuses: Any) -> None:
    np.save(folder / "1.npy", np.zeros((1, 2), "f4"))
    np.save(folder / "2.npy", np.zeros((1, 3), "f4"))
    with refuses("array 'x' in samples/2.npy has the shape (1, 3)", fix="dimension left free"):
        open_dataset(str(folder)).feeds([floats("x", "n", 2)])


def test_a_wrong_type_in_one_file_is_named_before_anything_runs(folder: Path, floats: Floats, refuses: Any) -> None:
    np.save(folder / "1.npy", np.zeros((1, 2), "f4"))
    np.save(folder / "2.npy", np.zeros((1, 2), "u1"))
    with refuses("array 'x' in samples/2.npy is uint8", fix="/ 255"):
        open_dataset(str(folder)).feeds([floats("x", "n", 2)])


def test_a_missing_array_names_its_file_and_the_nearest(folder: Path, floats: Floats, refuses: Any) -> None:
    np.savez(folder / "1.npz", pixel=np.zeros((1, 2), "f4"))
    with refuses("no array 'pixels' in samples/1.npz", fix="rename 'pixel' to 'pixels'"):
        open_dataset(str(folder)).feeds([floats("pixels", "n", 2)])


def test_nan_names_the_file(folder: Path, floats: Floats, refuses: Any) -> None:
    np.save(folder / "1.npy", np.array([[0.0, np.nan]], "f4"))
    with refuses("samples/1.npy, sample 0, holds nan", fix="remove the sample"):
        list(open_dataset(str(folder)).feeds([floats("x", "n", 2)]))


def test_files_without_rows_are_no_samples(folder: Path, floats: Floats, refuses: Any) -> None:
    np.save(folder / "1.npy", np.zeros((0, 2), "f4"))
    with refuses("samples has no samples", fix="a few dozen"):
        open_dataset(str(folder)).feeds([floats("x", "n", 2)])


def test_specs_leave_open_what_differs(folder: Path) -> None:
    np.savez(folder / "1.npz", ids=np.zeros((1, 5), "i8"), image=np.zeros((1, 3, 4), "f4"), _label=np.array([1]))
    np.savez(folder / "2.npz", ids=np.zeros((1, 7), "i8"), image=np.zeros((2, 3, 4), "f4"), _label=np.array([2]))
    specs = {spec.name: spec.shape for spec in open_dataset(str(folder)).specs()}
    assert specs == {"ids": (None, None), "image": (None, 3, 4)}


def test_labels_join_over_the_files(folder: Path, refuses: Any) -> None:
    np.savez(folder / "1.npz", x=np.zeros((2, 2), "f4"), _label=np.array([1, 2]))
    np.savez(folder / "2.npz", x=np.zeros((1, 2), "f4"), _label=np.int64(3))
    label = open_dataset(str(folder)).array("_label")
    assert label is not None
    assert label.tolist() == [1, 2, 3]
    np.savez(folder / "3.npz", x=np.zeros((1, 2), "f4"))
    with refuses("no array '_label' in samples/3.npz", fix="every file"):
        open_dataset(str(folder)).array("_label")


def test_arrays_that_do_not_join_are_refused(folder: Path, refuses: Any) -> None:
    np.savez(folder / "1.npz", x=np.zeros((1, 2)), _mask=np.zeros((1, 2)))
    np.savez(folder / "2.npz", x=np.zeros((1, 2)), _mask=np.zeros((1, 3)))
    with refuses("'_mask'", fix="same shape"):
        open_dataset(str(folder)).array("_mask")


def test_labels_may_lie_beside_the_samples(folder: Path) -> None:
    np.save(folder / "1.npy", np.zeros((2, 2), "f4"))
    np.save(folder / "_label.npy", np.array([4, 5]))
    data = open_dataset(str(folder))
    label = data.array("_label")
    assert label is not None
    assert label.tolist() == [4, 5]
    assert data.array("_other") is None
    assert data.array("../1") is None
