"""Image preprocessing: from a decoded image to the array that a model was trained on."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from qtool.calib.errors import CalibError
from qtool.calib.image_layout import Layout
from qtool.calib.specs import Array

Channels = Literal["rgb", "bgr", "gray"]
Filter = Literal["bilinear", "bicubic"]

_FILTERS: Mapping[Filter, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """Describes the steps from a decoded image, bytes from 0 to 255, to ``(image * scale - mean) / std``.

    Attributes:
        resize: first bring the shorter side to this length and keep the proportions, None for no such step; ``size``
            is then cut from the centre. Without it the image is stretched to ``size``.
        size: height and width of the result; None takes those of the model's input.
        layout: where the channels are; None for that of the model's input.
        channels: colours and their order; None for those of the model's input: one channel is gray, three are rgb.
        scale: factor applied first.
        mean: subtracted next, one for all channels or one each.
        std: divisor applied last, one for all channels or one each.
        filter: how resizing interpolates.
    """

    resize: int | None = None
    size: tuple[int, int] | None = None
    layout: Layout | None = None
    channels: Channels | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    filter: Filter = "bilinear"

    def __post_init__(self) -> None:
        """Rejects invalid settings.

        Raises:
            CalibError: a value is out of its range, or two of them contradict each other.
        """
        for key, values in (("scale", (self.scale,)), ("std", self.std)):
            if not values or not all(math.isfinite(value) and value for value in values):
                raise CalibError(f"{key}={_listed(values)} divides by zero or scales to zero", fix="use other numbers")
        if not self.mean or not all(map(math.isfinite, self.mean)):
            raise CalibError(f"mean={_listed(self.mean)} is not finite", fix="use finite numbers")
        wanted = (1,) if self.channels == "gray" else (1, 3)
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in wanted:
                raise CalibError(
                    f"{key} has {len(values)} numbers", fix="give one number for all channels, or one for each"
                )
        sides = [side for side in (self.resize, *(self.size or ())) if side is not None]
        if min(sides, default=1) < 1:
            raise CalibError("the preprocessing makes images without pixels", fix="make size and resize at least 1")
        if self.resize is not None and self.size is not None and self.resize < max(self.size):
            height, width = self.size
            raise CalibError(
                f"resize={self.resize} is less than size={height}x{width}, which is cut from it",
                fix=f"make resize at least {max(self.size)}, or leave it out to stretch images to the size",
            )

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Parses ``[preset,]key=value,...``; keys after a preset override it.

        Presets are ``imagenet``, ``0-1``, ``-1-1`` and ``0-255``; keys are the attributes. ``mean`` and ``std`` take
        one number or three (``mean=0.485,0.456,0.406``), ``scale`` a number or a fraction (``1/255``).

        Raises:
            CalibError: a preset, key or value is not known.
        """
        items = [item.strip() for item in text.split(",")]
        base = cls()
        if items and "=" not in items[0]:
            preset = items.pop(0)
            if preset not in PRESETS:
                raise CalibError(f"there is no preprocessing '{preset}'", fix=_known(preset, PRESETS))
            base = PRESETS[preset]
        texts: dict[str, str] = {}
        key = ""
        for item in items:
            name, equals, value = (part.strip() for part in item.partition("="))
            if equals:
                if name not in _READERS:
                    raise CalibError(f"preprocessing has no '{name}'", fix=_known(name, _READERS))
                if name in texts:
                    raise CalibError(f"preprocessing gives '{name}' twice", fix="give it once")
                key, texts[name] = name, value
            elif key in ("mean", "std"):
                texts[key] += f",{item}"  # the next number of a list
            else:
                raise CalibError(
                    f"'{item}' in the preprocessing has no '='", fix="write key=value, after a preset if any"
                )
        changes = {name: _read(name, value) for name, value in texts.items()}
        # A preset's resize belongs to its size: another size scales it in proportion.
        if "size" in changes and "resize" not in changes and base.resize is not None and base.size is not None:
            changes["resize"] = round(base.resize * max(changes["size"]) / max(base.size))
        return replace(base, **changes)

    def load(self, path: Path) -> Array:
        """Returns the image as float32 in this layout; every attribute but ``resize`` must be set.

        The shape is (channels, height, width) or (height, width, channels).

        Raises:
            CalibError: the file is broken, or has more than 8 bits per channel without a defined range.
        """
        pixels = np.asarray(self._resized(_decoded(path, gray=self.channels == "gray")), dtype=np.float32)
        if self.channels == "gray":
            pixels = pixels[..., None]
        elif self.channels == "bgr":
            pixels = pixels[..., ::-1]
        mean, std = (np.asarray(values, dtype=np.float32) for values in (self.mean, self.std))
        result = (pixels * np.float32(self.scale) - mean) / std
        if self.layout == "nchw":
            result = result.transpose(2, 0, 1)
        return np.ascontiguousarray(result)

    @property
    def keeps_bytes(self) -> bool:
        """Whether the values stay the bytes of the image, as an integer input needs."""
        return self.scale == 1 and not any(self.mean) and all(value == 1 for value in self.std)

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.size is None:
            return image
        height, width = self.size
        resample = _FILTERS[self.filter]
        if self.resize is None:
            return image if image.size == (width, height) else image.resize((width, height), resample)
        # Lengths and offsets are rounded as in torchvision's Resize and CenterCrop, used for training most models.
        short = min(image.size)
        scaled = tuple(self.resize if side == short else int(self.resize * side / short) for side in image.size)
        if scaled != image.size:
            image = image.resize((scaled[0], scaled[1]), resample)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))


PRESETS: Mapping[str, Preprocess] = {
    "imagenet": Preprocess(resize=256, size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "0-1": Preprocess(),
    "-1-1": Preprocess(mean=(0.5,), std=(0.5,)),
    "0-255": Preprocess(scale=1.0),
}


def _decoded(path: Path, *, gray: bool) -> Image.Image:
    try:
        with Image.open(path) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except Exception as error:  # Pillow's decoders raise many kinds of errors on broken files
        empty = path.is_file() and path.stat().st_size == 0
        reason = "is empty" if empty else f"cannot be read as an image: {' '.join(str(error).split())}"
        raise CalibError(f"{path} {reason}", fix="replace the file, or remove it from the folder") from error
    if image.mode in _SIXTEEN_BIT_MODES:
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise CalibError(
            f"{path} has 32 bits per pixel, whose range is not defined",
            fix="convert it to 8 bits, or store the arrays in an .npz",
        )
    return image.convert("L" if gray else "RGB")


def _read_numbers(text: str) -> tuple[float, ...]:
    return tuple(_read_number(part) for part in text.split(","))


def _read_number(text: str) -> float:
    above, slash, below = text.partition("/")
    return float(above) / float(below) if slash else float(above)


def _read_size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    return int(height), int(width if cross else height)


def _one_of(*known: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in known:
            raise ValueError(text)
        return text.lower()

    return read


_READERS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "resize": (int, "256"),
    "size": (_read_size, "224x224, height first"),
    "layout": (_one_of("nchw", "nhwc"), "nchw or nhwc"),
    "channels": (_one_of("rgb", "bgr", "gray"), "rgb, bgr or gray"),
    "scale": (_read_number, "1/255"),
    "mean": (_read_numbers, "0.5 or 0.485,0.456,0.406"),
    "std": (_read_numbers, "0.5 or 0.229,0.224,0.225"),
    "filter": (_one_of("bilinear", "bicubic"), "bilinear or bicubic"),
}


def _read(key: str, text: str) -> Any:
    reader, example = _READERS[key]
    try:
        return reader(text)
    except (ValueError, ZeroDivisionError) as error:
        raise CalibError(
            f"'{key}={text}' in the preprocessing is not valid", fix=f"write {key} as {example}"
        ) from error


def _known(text: str, names: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(text, names, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known are {', '.join(names)}"


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
