"""A folder of images: each file is one sample, and each subfolder, if any, one class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qtool.calib.datasets.base import Remark
from qtool.calib.datasets.batching import Chunk, Window, batches, window_for
from qtool.calib.datasets.images import Channels, Preprocess
from qtool.calib.datasets.listing import side_array
from qtool.calib.datasets.matching import described, only_input
from qtool.calib.errors import CalibError
from qtool.calib.image_layout import Layout
from qtool.calib.specs import Array, Dim, TensorSpec

LABELS = "_label"


class ImageFolder:
    """Streams images in the natural order of their names with ``Preprocess``; decodes one at a time."""

    def __init__(self, folder: Path, files: Sequence[Path], preprocess: Preprocess) -> None:
        """Takes the list of files; a broken file raises an error when it is read.

        Args:
            folder: the folder, for its name and for labels.
            files: its images, in order.
            preprocess: how they become arrays.
        """
        self._folder = folder
        self._files = list(files)
        self._preprocess = preprocess

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self._files)

    def specs(self) -> tuple[TensorSpec, ...]:
        """Describes the images where the preprocessing sets their size, by default as colour and NCHW."""
        size = self._preprocess.size
        if size is None:
            return ()
        channels = 1 if self._preprocess.channels == "gray" else 3
        shape = (None, *size, channels) if self._preprocess.layout == "nhwc" else (None, channels, *size)
        return (TensorSpec("", np.dtype(np.float32), shape),)

    def array(self, name: str) -> Array | None:
        """Loads ``NAME.npy`` next to the images; ``_label`` defaults to the class by subfolder.

        The class is the number in the subfolder's name, or its alphabetical index where not all names are numbers.

        Raises:
            CalibError: the file is damaged, or does not have one row per image.
        """
        beside = side_array(self._folder, name)
        if beside is not None:
            if beside.shape[:1] != (self.count,):
                raise CalibError(
                    f"{self._folder / name}.npy has the shape {beside.shape}, the folder {self.count} images",
                    fix="give it one row per image, in the natural order of the file names",
                )
            return beside
        parents = [path.relative_to(self._folder).parts[:-1] for path in self._files]
        if name != LABELS or not all(parents):
            return None
        classes = [parts[0] for parts in parents]
        if all(part.isdecimal() for part in classes):
            return np.array([int(part) for part in classes], dtype=np.int64)
        places = {part: place for place, part in enumerate(sorted(set(classes)))}
        return np.array([places[part] for part in classes], dtype=np.int64)

    def feeds(
        self,
        inputs: Sequence[TensorSpec],
        *,
        batch_size: int = 1,
        limit: int | None = None,
        skip: int = 0,
        remark: Remark | None = None,
    ) -> Iterator[dict[str, Array]]:
        """Streams batches of images; see ``Dataset.feeds``."""
        where = self._folder.name
        spec = only_input(inputs, where)
        settled = _settled(self._preprocess, spec)
        window = window_for(inputs, batch_size=batch_size, limit=limit, skip=skip, count=self.count, where=where)
        return batches(self._chunks(spec, settled, window), window, where=where, remark=remark)

    def _chunks(self, spec: TensorSpec, preprocess: Preprocess, window: Window) -> Iterator[Chunk]:
        for path in self._files[window.skip : window.stop(self.count)]:
            yield Chunk(arrays={spec.name: preprocess.load(path)[None].astype(spec.dtype)}, rows=1)


def _settled(preprocess: Preprocess, spec: TensorSpec) -> Preprocess:
    """Returns the preprocessing, completed with layout, channels and size of the input.

    Raises:
        CalibError: the input is not an image, leaves the size open, or contradicts the preprocessing.
    """
    _check_dtype(preprocess, spec)
    if spec.shape is None:
        dims: tuple[Dim, ...] = (None, None, None, None)
    elif len(spec.shape) == 4:
        dims = spec.shape
    else:
        raise CalibError(
            f"the input '{spec.name}' {described(spec)} is not an image, which has 4 axes",
            fix="store the arrays as the model takes them in an .npz",
        )
    layout = preprocess.layout or spec.layout or _layout(dims)
    depth, height, width = (dims[1], dims[2], dims[3]) if layout == "nchw" else (dims[3], dims[1], dims[2])
    channels = preprocess.channels or _channels(depth, spec)
    if isinstance(depth, int) and depth != (1 if channels == "gray" else 3):
        raise CalibError(
            f"the input '{spec.name}' {described(spec)} has {depth} channels in the layout {layout}, not {channels}",
            fix="set layout or channels in the preprocessing to those of the model, or leave them out",
        )
    if channels == "gray" and max(len(preprocess.mean), len(preprocess.std)) > 1:
        raise CalibError(
            f"mean and std are for three channels, the input '{spec.name}' {described(spec)} takes one",
            fix="give one number each, such as 0-1,mean=0.5,std=0.5",
        )
    size = preprocess.size or _size(height, width, preprocess, spec)
    for have, want in zip(size, (height, width), strict=True):
        if isinstance(want, int) and have != want:
            raise CalibError(
                f"the preprocessing makes images of {size[0]}x{size[1]}, the input '{spec.name}' is {described(spec)}",
                fix=f"set size={height}x{width} in the preprocessing",
            )
    return replace(preprocess, layout=layout, channels=channels, size=size)


def _layout(dims: tuple[Dim, ...]) -> Layout:
    return "nhwc" if dims[3] in (1, 3) and dims[1] not in (1, 3) else "nchw"


def _channels(depth: Dim, spec: TensorSpec) -> Channels:
    if isinstance(depth, int) and depth not in (1, 3):
        raise CalibError(
            f"the input '{spec.name}' {described(spec)} has {depth} channels, images have 1 or 3",
            fix="store the arrays as the model takes them in an .npz",
        )
    return "gray" if depth == 1 else "rgb"


def _size(
    height: int | str | None, width: int | str | None, preprocess: Preprocess, spec: TensorSpec
) -> tuple[int, int]:
    if isinstance(height, int) and isinstance(width, int):
        if preprocess.resize is not None and preprocess.resize < max(height, width):
            raise CalibError(
                f"resize={preprocess.resize} is less than the input '{spec.name}' {described(spec)}, cut from it",
                fix=f"make resize at least {max(height, width)}, or leave it out",
            )
        return height, width
    raise CalibError(
        f"the input '{spec.name}' {described(spec)} leaves the size of images open",
        fix="set it in the preprocessing, such as size=224x224",
    )


def _check_dtype(preprocess: Preprocess, spec: TensorSpec) -> None:
    if spec.dtype.kind == "f" or (spec.dtype.kind in "iu" and preprocess.keeps_bytes and spec.dtype != np.int8):
        return
    fix = "store the arrays as the model takes them in an .npz"
    if spec.dtype.kind in "iu" and spec.dtype != np.int8:
        fix = "use the preprocessing 0-255, which keeps the bytes of the image"
    raise CalibError(f"the input '{spec.name}' is {spec.dtype}, the preprocessing makes other numbers", fix=fix)
