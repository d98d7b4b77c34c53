"""A folder of images feeds a model what its input asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qtool.calib.dataset import open_dataset
from qtool.calib.datasets.images import Preprocess
from qtool.calib.specs import Dim, TensorSpec

Floats = Callable[..., TensorSpec]


def _fill(folder: Path, count: int) -> None:
    for number in range(count):
        Image.new("RGB", (8, 6), (number, 0, 255)).save(folder / f"{number}.png")


def _open(folder: Path, text: str) -> Any:
    return open_dataset(str(folder), preprocess=Preprocess.parse(text))


@pytest.mark.parametrize(
    ("shape", "text", "expected"),
    [
        (("n", 3, 4, 5), "0-1", (2, 3, 4, 5)),
        (("n", 4, 5, 3), "0-1", (2, 4, 5, 3)),
        (("n", 1, 4, 5), "0-1", (2, 1, 4, 5)),
        (("n", 3, "height", "width"), "0-1,size=7x9", (2, 3, 7, 9)),
        (("n", "height", "width", "channels"), "0-1,size=7x9,layout=nhwc", (2, 7, 9, 3)),
        (("n", 3, 32, 32), "0-1,resize=40", (2, 3, 32, 32)),
        (None, "0-1,size=7x9", (2, 3, 7, 9)),
    ],
)
def test_layout_channels_and_size_go_by_the_input(
    folder: Path, shape: tuple[Dim, ...] | None, text: str, expected: tuple[int, ...]
) -> None:
    _fill(folder, 2)
    (feed,) = _open(folder, text).feeds([TensorSpec("x", np.dtype("f4"), shape)], batch_size=2)
    assert feed["x"].shape == expected


def test_images_come_in_natural_order_and_in_batches(folder: Path, floats: Floats) -> None:
    _fill(folder, 12)
    data = _open(folder, "0-255")
    feeds = list(data.feeds([floats("x", "n", 3, 2, 2)], batch_size=4, skip=1, limit=10))
    assert [feed["x"][:, 0, 0, 0].tolist() for feed in feeds] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert data.count == 12


def test_an_input_of_bytes_gets_the_bytes(folder: Path, refuses: Any) -> None:
    _fill(folder, 1)
    spec = TensorSpec("x", np.dtype("u1"), ("n", 6, 8, 3))
    (feed,) = _open(folder, "0-255").feeds([spec])
    assert feed["x"].dtype == np.uint8
    assert feed["x"][0, 0, 0].tolist() == [0, 0, 255]
    with refuses("the input 'x' is uint8", fix="0-255"):
        _open(folder, "0-1").feeds([spec])


def test_an_input_of_halves_gets_halves(folder: Path) -> None:
    _fill(folder, 1)
    (feed,) = _open(folder, "0-1").feeds([TensorSpec("x", np.dtype("f2"), ("n", 3, 6, 8))])
    assert feed["x"].dtype == np.float16


@pytest.mark.parametrize(
    ("dtype", "shape", "text", "problem", "fix"),
    [
        ("f4", ("n", 10), "0-1", "is not an image", ".npz"),
        ("f4", ("n", 4, 8, 8), "0-1", "has 4 channels, images have 1 or 3", ".npz"),
        ("f4", ("n", 3, "h", "w"), "0-1", "leaves the size of images open", "size=224x224"),
        ("f4", ("n", 3, 8, 8), "0-1,size=4x4", "images of 4x4, the input 'x' is (n, 3, 8, 8)", "size=8x8"),
        ("f4", ("n", 3, 8, 8), "0-1,channels=gray", "has 3 channels in the layout nchw, not gray", "leave them out"),
        ("f4", ("n", 3, 8, 8), "0-1,layout=nhwc", "has 8 channels", ".npz"),
        ("f4", ("n", 1, 8, 8), "0-1,mean=1,2,3", "takes one", "one number each"),
        ("f4", ("n", 3, 8, 8), "0-1,resize=4", "resize=4 is less than", "at least 8"),
        ("i1", ("n", 3, 8, 8), "0-255", "the input 'x' is int8", ".npz"),
        ("O", ("n", 3, 8, 8), "0-255", "the input 'x' is object", ".npz"),
    ],
)
def test_an_input_that_images_do_not_fit_says_why(
    folder: Path, refuses: Any, dtype: str, shape: tuple[Dim, ...], text: str, problem: str, fix: str
) -> None:
    _fill(folder, 1)
    with refuses(problem, fix=fix):
        _open(folder, text).feeds([TensorSpec("x", np.dtype(dtype), shape)])


def test_images_feed_one_input_only(folder: Path, floats: Floats, refuses: Any) -> None:
    _fill(folder, 1)
    with refuses("holds one input, the model has 2: 'a', 'b'", fix="by name"):
        _open(folder, "0-1").feeds([floats("a", "n", 3, 8, 8), floats("b", "n", 3, 8, 8)])


def test_a_broken_image_is_met_in_its_turn(folder: Path, floats: Floats, refuses: Any) -> None:
    _fill(folder, 3)
    (folder / "1.png").write_bytes(b"no image")
    feeds = _open(folder, "0-1").feeds([floats("x", "n", 3, 8, 8)])
    next(feeds)
    with refuses("1.png cannot be read as an image", fix="remove it from the folder"):
        next(feeds)


def test_subfolders_are_classes(folder: Path) -> None:
    for name in ("dog", "cat"):
        (folder / name).mkdir()
        _fill(folder / name, 2)
    assert _open(folder, "0-1").array("_label").tolist() == [0, 0, 1, 1]
    _fill(folder, 1)
    assert _open(folder, "0-1").array("_label") is None


def test_subfolders_named_by_numbers_are_those_classes(folder: Path) -> None:
    for name in ("7", "10"):
        (folder / name).mkdir()
        _fill(folder / name, 1)
    assert _open(folder, "0-1").array("_label").tolist() == [7, 10]


def test_labels_may_lie_beside_the_images(folder: Path, refuses: Any) -> None:
    _fill(folder, 2)
    np.save(folder / "_label.npy", np.array([4, 5]))
    assert _open(folder, "0-1").array("_label").tolist() == [4, 5]
    np.save(folder / "_label.npy", np.array([4, 5, 6]))
    with refuses("_label.npy has the shape (3,), the folder 2 images", fix="one row per image"):
        _open(folder, "0-1").array("_label")


def test_specs_say_what_the_preprocessing_makes(folder: Path) -> None:
    _fill(folder, 1)
    assert _open(folder, "imagenet").specs() == (TensorSpec("", np.dtype("f4"), (None, 3, 224, 224)),)
    assert _open(folder, "size=4x5,layout=nhwc,channels=gray").specs()[0].shape == (None, 4, 5, 1)
    assert _open(folder, "0-1").specs() == ()
