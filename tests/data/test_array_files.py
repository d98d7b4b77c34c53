"""One ``.npz`` or ``.npy`` file, whose rows are samples."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool.calib.dataset import open_dataset
from qtool.calib.errors import CalibError
from qtool.calib.specs import TensorSpec

Floats = Callable[..., TensorSpec]


def test_an_npz_gives_each_input_its_array(tmp_path: Path, floats: Floats) -> None:
    a, b = np.random.default_rng(0).random((5, 3)).astype("f4"), np.arange(10, dtype="f4").reshape(5, 2)
    np.savez(tmp_path / "data.npz", a=a, b=b, unused=np.zeros(5))
    data = open_dataset(str(tmp_path / "data.npz"))
    feeds = list(data.feeds([floats("b", "n", 2), floats("a", "n", 3)], batch_size=2))
    assert data.count == 5
    assert [len(feed["a"]) for feed in feeds] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([feed["a"] for feed in feeds]), a)
    np.testing.assert_array_equal(np.concatenate([feed["b"] for feed in feeds]), b)


def test_the_data_can_be_read_again(tmp_path: Path, floats: Floats) -> None:
    np.save(tmp_path / "x.npy", np.arange(6, dtype="f4").reshape(3, 2))
    data = open_dataset(str(tmp_path / "x.npy"))
    first, second = (list(data.feeds([floats("x", "n", 2)])) for _ in range(2))
    assert len(first) == 3
    np.testing.assert_equal(first, second)


def test_labels_are_no_input_and_can_be_loaded(tmp_path: Path, floats: Floats) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 2), "f4"), _label=np.arange(4), _other=np.arange(9))
    data = open_dataset(str(tmp_path / "data.npz"))
    assert [spec.name for spec in data.specs()] == ["x"]
    label = data.array("_label")
    assert label is not None
    assert label.tolist() == [0, 1, 2, 3]
    assert data.array("_none") is None


def test_labels_of_another_length_are_refused(tmp_path: Path, refuses: Any) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 2), "f4"), _label=np.arange(9))
    with refuses("array '_label'", fix="one row per sample"):
        open_dataset(str(tmp_path / "data.npz")).array("_label")


def test_a_missing_array_names_the_nearest(tmp_path: Path, floats: Floats, refuses: Any) -> None:
    np.savez(tmp_path / "data.npz", images=np.zeros((2, 3), "f4"), mask=np.zeros((2, 3), "f4"))
    with refuses("no array 'image' in data.npz", fix="rename 'images' to 'image' (unused arrays: images, mask)"):
        open_dataset(str(tmp_path / "data.npz")).feeds([floats("image", "n", 3)])


def test_a_missing_array_without_any_near_one_is_to_be_added(tmp_path: Path, floats: Floats, refuses: Any) -> None:
    np.savez(tmp_path / "data.npz", a=np.zeros((2, 3), "f4"))
    with refuses("no array 'b' in data.npz", fix="add an array 'b'"):
        open_dataset(str(tmp_path / "data.npz")).feeds([floats("a", "n", 3), floats("b", "n", 3)])


def test_a_bare_array_feeds_one_input_only(tmp_path: Path, floats: Floats, refuses: Any) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3), "f4"))
    with refuses("holds one input, the model has 2", fix="a=..., b=..."):
        open_dataset(str(tmp_path / "x.npy")).feeds([floats("a", "n", 3), floats("b", "n", 3)])


@pytest.mark.parametrize(
    ("shape", "problem", "fix"),
    [
        ((2, 3, 4), "has 3 axes (2, 3, 4), the input 4 axes (batch, 3, 4, 5)", "one row per sample"),
        ((2, 3, 4, 6), "axis 3 is 6 instead of 5", "leave"),
        ((2, 4, 5, 3), "axis 1 is 4 instead of 3", "x.transpose(0, 3, 1, 2)"),
    ],
)
def test_a_wrong_shape_names_the_axis(
    tmp_path: Path, image_input: TensorSpec, refuses: Any, shape: tuple[int, ...], problem: str, fix: str
) -> None:
    np.savez(tmp_path / "data.npz", image=np.zeros(shape, "f4"))
    with refuses(problem, fix=fix if fix != "leave" else "dimension left free"):
        open_dataset(str(tmp_path / "data.npz")).feeds([image_input])


@pytest.mark.parametrize(
    ("stored", "wanted", "fix"),
    [
        ("u1", "f4", "x.astype('float32') / 255"),
        ("i8", "f4", "x.astype('float32')"),
        ("f4", "i8", "numpy.rint(x).astype('int64')"),
        ("U3", "f4", "store it as float32"),
    ],
)
def test_a_wrong_type_says_how_to_store_it(tmp_path: Path, refuses: Any, stored: str, wanted: str, fix: str) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 3), stored))
    with refuses("array 'x' in data.npz is", fix=fix):
        open_dataset(str(tmp_path / "data.npz")).feeds([TensorSpec("x", np.dtype(wanted), ("n", 3))])


@pytest.mark.parametrize(("stored", "wanted"), [("f8", "f4"), ("f2", "f4"), ("i4", "i8"), ("u1", "i8"), ("?", "i8")])
def test_types_that_lose_nothing_are_cast(tmp_path: Path, stored: str, wanted: str) -> None:
    np.savez(tmp_path / "data.npz", x=np.array([[0, 1]], stored))
    (feed,) = open_dataset(str(tmp_path / "data.npz")).feeds([TensorSpec("x", np.dtype(wanted), ("n", 2))])
    assert feed["x"].dtype == np.dtype(wanted)
    assert feed["x"].tolist() == [[0, 1]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_name_the_sample(tmp_path: Path, floats: Floats, refuses: Any, value: float) -> None:
    values = np.zeros((9, 2), "f4")
    values[7, 1] = value
    np.savez(tmp_path / "data.npz", x=values)
    feeds = open_dataset(str(tmp_path / "data.npz")).feeds([floats("x", "n", 2)], batch_size=4)
    with refuses(f"array 'x' in data.npz, sample 7, holds {value}", fix="remove the sample"):
        list(feeds)


def test_integers_that_do_not_fit_name_the_sample(tmp_path: Path, refuses: Any) -> None:
    np.savez(tmp_path / "data.npz", x=np.array([[1], [2**40]]))
    with refuses("sample 1: 1099511627776 does not fit into int32", fix="keep the values between"):
        list(open_dataset(str(tmp_path / "data.npz")).feeds([TensorSpec("x", np.dtype("i4"), ("n", 1))]))


def test_floats_that_do_not_fit_name_the_sample(tmp_path: Path, floats: Floats, refuses: Any) -> None:
    np.savez(tmp_path / "data.npz", x=np.array([[1.0], [1e300]]))
    with refuses("sample 1: 1e+300 does not fit into float32", fix="scale the data"):
        list(open_dataset(str(tmp_path / "data.npz")).feeds([floats("x", "n", 1)]))


def test_arrays_of_different_length_are_refused(tmp_path: Path, refuses: Any) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 2)), y=np.zeros((4, 2)))
    with refuses("'x' has 3 rows, 'y' 4", fix="begin the names of arrays that are not inputs with '_'"):
        open_dataset(str(tmp_path / "data.npz"))


def test_no_samples_are_refused(tmp_path: Path, floats: Floats, refuses: Any) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((0, 2), "f4"))
    with refuses("data.npz has no samples", fix="a few dozen representative samples"):
        open_dataset(str(tmp_path / "data.npz")).feeds([floats("x", "n", 2)])


def test_a_file_without_arrays_of_samples_is_refused(tmp_path: Path, refuses: Any) -> None:
    np.savez(tmp_path / "data.npz", _label=np.arange(3), scalar=np.float32(1))
    with refuses("holds no array with a samples axis", fix="one row per sample"):
        open_dataset(str(tmp_path / "data.npz"))


def test_too_few_samples_for_a_fixed_batch_are_refused(tmp_path: Path, floats: Floats, refuses: Any) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 2), "f4"))
    with refuses("the 3 samples of data.npz do not fill one batch of exactly 8", fix="at least 8"):
        open_dataset(str(tmp_path / "data.npz")).feeds([floats("x", 8, 2)])


def test_skipping_everything_is_refused(tmp_path: Path, floats: Floats, refuses: Any) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 2), "f4"))
    with refuses("has 3 samples and 3 are to be skipped", fix="at most 2"):
        open_dataset(str(tmp_path / "data.npz")).feeds([floats("x", "n", 2)], skip=3)


@pytest.mark.parametrize(("option", "value"), [("batch_size", 0), ("limit", 0), ("skip", -1)])
def test_numbers_that_make_no_sense_are_refused(
    tmp_path: Path, floats: Floats, refuses: Any, option: str, value: int
) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 2), "f4"))
    with refuses(f"the {option.replace('_', ' ')} is {value}", fix="at least"):
        open_dataset(str(tmp_path / "data.npz")).feeds([floats("x", "n", 2)], **{option: value})


def test_a_batch_size_that_the_model_does_not_take_is_refused(tmp_path: Path, floats: Floats, refuses: Any) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((30, 2), "f4"))
    with refuses("batches of exactly 8, not of 4", fix="give 8"):
        open_dataset(str(tmp_path / "data.npz")).feeds([floats("x", 8, 2)], batch_size=4)


def test_samples_that_fill_no_fixed_batch_are_remarked_on(tmp_path: Path, floats: Floats) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((11, 2), "f4"))
    remarks: list[str] = []
    feeds = open_dataset(str(tmp_path / "data.npz")).feeds([floats("x", 4, 2)], remark=remarks.append)
    assert [len(feed["x"]) for feed in feeds] == [4, 4]
    assert remarks == ["3 samples of data.npz do not fill a batch of 4 and are left out"]


def test_a_row_may_be_the_whole_value_of_an_input(tmp_path: Path, floats: Floats) -> None:
    states, x = np.random.default_rng(0).random((4, 2, 1, 3)).astype("f4"), np.ones((4, 5), "f4")
    np.savez(tmp_path / "data.npz", state=states, x=x)
    inputs = [floats("state", 2, 1, 3), floats("x", "n", 5)]
    feeds = list(open_dataset(str(tmp_path / "data.npz")).feeds(inputs))
    assert len(feeds) == 4
    np.testing.assert_array_equal(feeds[2]["state"], states[2])
    assert feeds[2]["x"].shape == (1, 5)


def test_rows_that_are_whole_values_share_no_batch(tmp_path: Path, floats: Floats, refuses: Any) -> None:
    np.savez(tmp_path / "data.npz", state=np.zeros((4, 2, 1, 3), "f4"), x=np.ones((4, 1, 5), "f4"))
    with refuses("each row of 'state' in data.npz is the input's whole value", fix="batch size of 1"):
        open_dataset(str(tmp_path / "data.npz")).feeds([floats("state", 2, 1, 3), floats("x", "n", 5)], batch_size=2)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_storage_does_not_change_the_values(tmp_path: Path, floats: Floats, compressed: bool, order: Any) -> None:
    values = np.random.default_rng(1).random((13, 3, 2)).astype("f4")
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "data.npz", x=np.array(values, order=order))
    feeds = open_dataset(str(tmp_path / "data.npz")).feeds([floats("x", "n", 3, 2)], batch_size=5, skip=2, limit=9)
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), values[2:11])


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "is empty"), (b"hello, this is text", "is not a whole .npz file"), (None, "is not a whole .npz file")],
)
def test_a_damaged_npz_is_named(tmp_path: Path, refuses: Any, content: bytes | None, problem: str) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((100, 2)))
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    with refuses(problem, fix="numpy.savez"):
        open_dataset(str(path))


@pytest.mark.parametrize(("content", "problem"), [(b"", "is empty"), (b"some text that is no array", "not a .npy")])
def test_a_damaged_npy_is_named(tmp_path: Path, refuses: Any, content: bytes, problem: str) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with refuses(problem, fix="numpy.save"):
        open_dataset(str(tmp_path / "x.npy"))


def test_a_truncated_npy_is_named(tmp_path: Path, refuses: Any) -> None:
    np.save(tmp_path / "x.npy", np.zeros((100, 2)))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:500])
    with refuses("ends before its last value", fix="copy it again"):
        open_dataset(str(tmp_path / "x.npy"))


def test_flipped_bytes_in_a_compressed_file_are_found(tmp_path: Path, floats: Floats) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).random((500, 2)).astype("f4"))
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("x.npy").header_offset + 200
    damaged = bytearray(path.read_bytes())
    damaged[start : start + 400] = bytes(400)
    path.write_bytes(damaged)
    with pytest.raises(CalibError, match=r"data\.npz"):
        list(open_dataset(str(path)).feeds([floats("x", "n", 2)]))


def test_python_objects_are_never_loaded(tmp_path: Path, refuses: Any) -> None:
    np.savez(tmp_path / "data.npz", x=np.array([[1], [2, 3]], dtype=object))
    with refuses("holds Python objects, which are never loaded", fix="plain numbers"):
        open_dataset(str(tmp_path / "data.npz"))


def test_records_are_refused(tmp_path: Path, refuses: Any) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3, dtype=[("a", "f4"), ("b", "i4")]))
    with refuses("has the element type", fix="one plain array for each field"):
        open_dataset(str(tmp_path / "x.npy"))
