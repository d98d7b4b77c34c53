"""Opens data by what it is: a file or folder of arrays, a folder of images, or a Python function."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.calib.datasets.base import Dataset
from qtool.calib.datasets.listing import ARRAY_SUFFIXES, IMAGE_SUFFIXES, TEXT_SUFFIXES, sample_files
from qtool.calib.errors import CalibError

if TYPE_CHECKING:
    from qtool.calib.datasets.images import Preprocess
    from qtool.calib.datasets.text_file import TextOptions

_KINDS = "an .npz or .npy file, a folder of .npy/.npz files or of images, a .txt file, or pkg.module:function"


def open_dataset(source: str, *, preprocess: Preprocess | None = None, text: TextOptions | None = None) -> Dataset:
    """Opens ``source`` without reading its values.

    Args:
        source: an ``.npz`` or ``.npy`` file, a folder of such files, a folder of images, a file of text, or a function
            that yields feeds, as ``pkg.module:function`` or ``file.py:function``.
        preprocess: how images become arrays; required for images, an error for other data.
        text: how text becomes tokens; required for text, without effect on other data.

    Raises:
        CalibError: the source does not exist, is not data, or is damaged.
    """
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, preprocess)
    if not path.exists() and _names_function(source):
        from qtool.calib.datasets.callable_source import CallableSource

        _refuse(preprocess, source)
        return CallableSource(source)
    if not path.exists():
        raise CalibError(f"there is no data at {source}", fix=_nearest(path))
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise CalibError(f"{source} is a single image", fix=f"give the folder of images, {path.parent}")
    if path.suffix.lower() in TEXT_SUFFIXES:
        _refuse(preprocess, source)
        return _open_text(path, text)
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        raise CalibError(f"{source} is not a supported kind of data", fix=f"give {_KINDS}")
    from qtool.calib.datasets.array_file import ArrayFile

    _refuse(preprocess, source)
    return ArrayFile(path)


def _open_folder(folder: Path, preprocess: Preprocess | None) -> Dataset:
    files = sample_files(folder, ARRAY_SUFFIXES | IMAGE_SUFFIXES)
    arrays = [path for path in files if path.suffix.lower() in ARRAY_SUFFIXES]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if arrays and images:
        raise CalibError(
            f"{folder} holds both arrays ({arrays[0].name}) and images ({images[0].name})",
            fix="put them into two folders, or begin the names of those that are not samples with '_'",
        )
    if images:
        from qtool.calib.datasets.image_folder import ImageFolder

        if preprocess is None:
            raise CalibError(
                f"the images in {folder} need preprocessing to become arrays",
                fix="pass the training's preprocessing: --preprocess imagenet, 0-1, -1-1, 0-255 or for example "
                "size=224x224,mean=0.5,std=0.5",
            )
        return ImageFolder(folder, images, preprocess)
    if arrays:
        from qtool.calib.datasets.array_folder import ArrayFolder

        _refuse(preprocess, str(folder))
        return ArrayFolder(folder, arrays)
    raise CalibError(f"{folder} has no samples: no .npy, .npz or image file in it", fix=f"give {_KINDS}")


def _open_text(path: Path, options: TextOptions | None) -> Dataset:
    from qtool.calib.datasets.text_file import TextFile

    if options is None:
        raise CalibError(
            f"{path} is text, and there is no tokenizer.json beside the model to make tokens of it",
            fix="put it there, or name it: --tokenizer FOLDER",
        )
    return TextFile(path, options)


def _names_function(source: str) -> bool:
    """Distinguishes ``pkg.module:function`` from a path, which on Windows may hold a colon too."""
    module, colon, function = source.rpartition(":")
    return bool(colon and module) and function.isidentifier()


def _nearest(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else f"check the path, or give {_KINDS}"


def _refuse(preprocess: Preprocess | None, source: str) -> None:
    if preprocess is not None:
        raise CalibError(
            f"preprocessing is for images, and {source} is not one",
            fix="leave out --preprocess and store the arrays as the model expects them",
        )
