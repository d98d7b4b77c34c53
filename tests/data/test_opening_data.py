"""What a source is, by its name and its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qtool.calib.dataset import open_dataset
from qtool.calib.datasets.images import Preprocess


def test_a_missing_file_names_the_nearest(tmp_path: Path, refuses: Any) -> None:
    np.savez(tmp_path / "photos.npz", x=np.zeros((1, 2)))
    with refuses("there is no data at", fix="photos.npz"):
        open_dataset(str(tmp_path / "fotos.npz"))


def test_a_missing_folder_asks_for_data(tmp_path: Path, refuses: Any) -> None:
    with refuses("there is no data at", fix="folder of .npy/.npz"):
        open_dataset(str(tmp_path / "nowhere" / "data.npz"))


def test_another_kind_of_file_is_refused(tmp_path: Path, refuses: Any) -> None:
    (tmp_path / "data.csv").write_text("1,2")
    with refuses("not a supported kind of data", fix=".npz"):
        open_dataset(str(tmp_path / "data.csv"))


def test_a_single_image_points_at_its_folder(tmp_path: Path, refuses: Any) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with refuses("single image", fix=str(tmp_path)):
        open_dataset(str(tmp_path / "a.png"))


def test_an_empty_folder_has_no_samples(folder: Path, refuses: Any) -> None:
    with refuses("has no samples", fix=".npz"):
        open_dataset(str(folder))


def test_arrays_and_images_do_not_mix(folder: Path, refuses: Any) -> None:
    np.save(folder / "a.npy", np.zeros(3))
    Image.new("RGB", (2, 2)).save(folder / "b.png")
    with refuses("both arrays (a.npy) and images (b.png)", fix="two folders"):
        open_dataset(str(folder))


def test_images_need_a_preprocessing(folder: Path, refuses: Any) -> None:
    Image.new("RGB", (2, 2)).save(folder / "b.png")
    with refuses("need preprocessing to become arrays", fix="--preprocess imagenet"):
        open_dataset(str(folder))


@pytest.mark.parametrize("kind", ["file", "folder", "function"])
def test_arrays_refuse_a_preprocessing(tmp_path: Path, refuses: Any, kind: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    source = {"file": str(tmp_path / "a.npy"), "folder": str(tmp_path), "function": "os:getcwd"}[kind]
    with refuses("preprocessing is for images", fix="leave out --preprocess"):
        open_dataset(source, preprocess=Preprocess())


def test_hidden_and_underscored_files_are_no_samples(folder: Path) -> None:
    Image.new("RGB", (2, 2)).save(folder / "b.png")
    Image.new("RGB", (2, 2)).save(folder / "._b.png")
    np.save(folder / "_label.npy", np.array([7]))
    (folder / ".cache").mkdir()
    np.save(folder / ".cache" / "x.npy", np.zeros(3))
    assert open_dataset(str(folder), preprocess=Preprocess()).count == 1


def test_a_path_with_a_drive_is_no_function(refuses: Any) -> None:
    with refuses("there is no data at", fix=".npz"):
        open_dataset(r"C:\data\photos.npz")
