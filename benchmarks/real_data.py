"""Inputs for the models of ``real_models.py``: photos and files that packages ship, and drawn or played stand-ins.

Every function takes the part, ``calib`` or ``eval``, and gives other samples for each; the same ones every time.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Array = npt.NDArray[Any]
PARTS = {"calib": 0, "eval": 1}
# What scikit-image ships that a camera took and that is not a microscope's, a telescope's or a scanner's.
_PHOTOS = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "motorcycle_left.png",
    "rocket.jpg",
)


def photo_crops(package: Path, part: str, count: int, height: int, width: int) -> Array:
    """Returns uint8 (count, height, width, 3): crops of photos, of their left halves for calib."""
    halves = []
    for name in _PHOTOS:
        photo = Image.open(package / "skimage" / "data" / name).convert("RGB")
        middle = photo.width // 2
        left, right = (0, middle) if part == "calib" else (middle, photo.width)
        halves.append(photo.crop((left, 0, right, photo.height)))
    random = np.random.default_rng(PARTS[part])
    return np.stack([_crop(halves[index % len(halves)], random, height, width) for index in range(count)])


def _crop(photo: Image.Image, random: np.random.Generator, height: int, width: int) -> Array:
    share = random.uniform(0.5, 1.0)
    wide = round(min(photo.width, photo.height * width / height) * share)
    high = round(wide * height / width)
    x, y = int(random.integers(photo.width - wide + 1)), int(random.integers(photo.height - high + 1))
    cut = photo.resize((width, height), Image.Resampling.BICUBIC, box=(x, y, x + wide, y + high))
    return np.asarray(cut)[:, :: random.choice((-1, 1))]


@cache
def sentences() -> tuple[str, ...]:
    """Returns sentences of Python's language reference, as pydoc holds it."""
    found = []
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            text = " ".join(paragraph.split())
            if text[:1].isupper() and text.endswith(".") and 40 < len(text) < 300:
                found.append(text)
    order = np.random.default_rng(0).permutation(len(found))
    return tuple(dict.fromkeys(found[index] for index in order))


def _words(part: str) -> Iterator[str]:
    for number, text in enumerate(sentences()):
        if number % 2 == PARTS[part]:
            yield from text.split()


def text_lines(part: str, count: int, height: int, width: int) -> Array:
    """Returns uint8 (count, height, width, 3): words drawn on plain paper of many tints, with a camera's noise."""
    random, words = np.random.default_rng(PARTS[part]), _words(part)
    lines = []
    for _ in range(count):
        paper, ink = random.integers(150, 256, 3), random.integers(0, 90, 3)
        line = Image.new("RGB", (width, height), tuple(int(tint) for tint in paper))
        draw = ImageDraw.Draw(line)
        font = ImageFont.load_default(float(random.uniform(0.55, 0.8)) * height)
        x = float(random.uniform(2, 8))
        while True:
            word = next(words)
            x_next = x + draw.textlength(f"{word} ", font)
            if x_next > width - 4:
                break
            draw.text((x, float(random.uniform(0, 0.1)) * height), word, tuple(int(tint) for tint in ink), font)
            x = x_next
        lines.append(_noisy(line, random))
    return np.stack(lines)


def captchas(part: str, count: int, height: int, width: int) -> Array:
    """Returns uint8 (count, height, width, 3): four letters or digits each, tilted, behind lines and noise."""
    random = np.random.default_rng(PARTS[part])
    pictures = []
    for _ in range(count):
        picture = Image.new("RGB", (width, height), (240, 240, 240))
        for place in range(4):
            tile = Image.new("RGBA", (height, height))
            font = ImageFont.load_default(float(random.uniform(0.6, 0.8)) * height)
            sign = "ABCDEFGHJKLMNPQRSTUVWXYZabdefghkmnprtuwxy23456789"[random.integers(49)]
            ink = (*(int(tint) for tint in random.integers(0, 160, 3)), 255)
            ImageDraw.Draw(tile).text((height / 2, height / 2), sign, ink, font, anchor="mm")
            tile = tile.rotate(float(random.uniform(-25, 25)), Image.Resampling.BICUBIC)
            picture.paste(tile, (place * (width - height) // 3, 0), tile)
        draw = ImageDraw.Draw(picture)
        for _ in range(3):
            ends = [int(value) for value in random.integers(0, (width, height, width, height))]
            draw.line(ends, tuple(int(tint) for tint in random.integers(60, 220, 3)), 1)
        pictures.append(_noisy(picture, random))
    return np.stack(pictures)


def pages(part: str, count: int, size: int) -> tuple[Array, Array]:
    """Returns uint8 (count, size, size, 3), pages of text, and by how many quarter turns to the left each is turned."""
    random = np.random.default_rng(PARTS[part])
    high = max(size // 10, 16)
    lines = text_lines(part, count * (size // high), high, size)
    whole = lines.reshape(count, -1, size, 3)
    whole = np.pad(whole, ((0, 0), (0, size - whole.shape[1]), (0, 0), (0, 0)), mode="edge")
    turns = random.integers(0, 4, count)
    return np.stack([np.rot90(page, turn) for page, turn in zip(whole, turns, strict=True)]), turns


def _noisy(picture: Image.Image, random: np.random.Generator) -> Array:
    values = np.asarray(picture, np.float32) + random.normal(
        0, random.uniform(1, 8), (picture.height, picture.width, 3)
    )
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def notes(part: str, count: int, length: int, rate: int) -> Array:
    """Returns float32 (count, length): chords of plucked harmonic tones, each at its own time, over faint noise."""
    random = np.random.default_rng(PARTS[part])
    time = np.arange(length) / rate
    sound = random.normal(0, 0.002, (count, length))
    for row in sound:
        for _ in range(int(random.integers(3, 12))):
            pitch = 440 * 2 ** (random.integers(-30, 28) / 12)
            since = time - random.uniform(0, time[-1])
            envelope = np.where(since > 0, np.exp(-np.maximum(since, 0) * random.uniform(1, 6)), 0)
            for harmonic in range(1, int(min(12, rate / 2 / pitch)) + 1):
                row += random.uniform(0.05, 0.3) / harmonic * envelope * np.sin(2 * np.pi * pitch * harmonic * since)
    return np.clip(sound, -1, 1).astype(np.float32)


def voices(part: str, count: int, length: int, rate: int) -> Array:
    """Returns float32 (count, length): buzzing syllables with formants, pauses and noise between them."""
    random = np.random.default_rng(PARTS[part])
    rows = []
    for _ in range(count):
        row = np.zeros(0)
        while len(row) < length:
            size = int(random.uniform(0.08, 0.4) * rate)
            time = np.arange(size) / rate
            syllable = np.zeros(size)
            if random.random() < 0.7:
                pitch, formants = random.uniform(90, 250), random.uniform((300, 900, 2200), (900, 2200, 3400))
                for harmonic in range(1, int(rate / 2 / pitch)):
                    strength = (1 / (1 + ((harmonic * pitch - formants) / 150) ** 2)).sum() + 0.01
                    syllable += strength * np.sin(2 * np.pi * harmonic * pitch * time * (1 + 0.03 * time))
                syllable *= np.hanning(size) * random.uniform(0.03, 0.2)
            row = np.concatenate([row, syllable])
        rows.append(row[:length] + random.normal(0, random.uniform(0.0005, 0.02), length))
    return np.clip(np.stack(rows), -1, 1).astype(np.float32)


def files(part: str, count: int) -> list[bytes]:
    """Returns the contents of files of Python's own library, of all kinds that it has."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    by_kind: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "site-packages" not in path.parts and path.stat().st_size > 64:
            by_kind.setdefault(path.suffix.lower(), []).append(path)
    chosen: list[Path] = []
    for depth in range(max(map(len, by_kind.values()))):
        chosen += [paths[depth] for paths in by_kind.values() if depth < len(paths)]
    return [path.read_bytes() for path in chosen[PARTS[part] :: 2][:count]]
