"""How pixels become numbers, against the formulas written out in numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from qtool.calib.datasets.images import PRESETS, Preprocess

Pixels = npt.NDArray[np.uint8]

PHOTOS = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))
NUMBERS = st.tuples(*[st.floats(-2, 2, width=32)] * 3)
DIVISORS = st.tuples(*[st.floats(0.125, 4, width=32)] * 3)


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a test puts its image."""
    return tmp_path_factory.mktemp("images") / "photo.png"


@given(pixels=PHOTOS, mean=NUMBERS, std=DIVISORS, layout=st.sampled_from(["nchw", "nhwc"]))
def test_numbers_are_scaled_then_shifted_then_divided(
    png: Path, pixels: Pixels, mean: Any, std: Any, layout: Any
) -> None:
    Image.fromarray(pixels).save(png)
    found = Preprocess(layout=layout, channels="rgb", mean=mean, std=std).load(png)
    expected = (pixels.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    if layout == "nchw":
        expected = np.moveaxis(expected, -1, 0)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@given(pixels=PHOTOS)
def test_bgr_is_rgb_backwards(png: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels).save(png)
    settings = Preprocess(layout="nhwc", channels="rgb", scale=1.0)
    np.testing.assert_array_equal(settings.load(png)[..., ::-1], replace(settings, channels="bgr").load(png))


@given(pixels=PHOTOS, height=st.integers(1, 12), width=st.integers(1, 12), resize=st.none() | st.integers(12, 20))
def test_the_result_has_the_size_that_was_asked_for(
    png: Path, pixels: Pixels, height: int, width: int, resize: int | None
) -> None:
    Image.fromarray(pixels).save(png)
    found = Preprocess(size=(height, width), resize=resize, layout="nchw", channels="rgb").load(png)
    assert found.shape == (3, height, width)
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_centre_is_cut_from_the_resized_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = Preprocess(resize=30, size=(20, 24), layout="nhwc", channels="rgb", scale=1.0).load(tmp_path / "a.png")
    whole = np.asarray(Image.fromarray(pixels).resize((45, 30), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found, whole[5:25, 10:34])


def test_the_filter_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    settings = Preprocess(size=(5, 5), layout="nhwc", channels="rgb", scale=1.0, filter="bicubic")
    expected = np.asarray(Image.fromarray(pixels).resize((5, 5), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(settings.load(tmp_path / "a.png"), expected)


def test_the_imagenet_preset_is_the_usual_one() -> None:
    assert Preprocess.parse("imagenet") == Preprocess(
        resize=256, size=(224, 224), scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )


@pytest.mark.parametrize(("preset", "low", "high"), [("0-1", 0, 1), ("-1-1", -1, 1), ("0-255", 0, 255)])
def test_a_preset_is_named_by_its_range(tmp_path: Path, preset: str, low: float, high: float) -> None:
    Image.fromarray(np.array([[[0] * 3, [255] * 3]], np.uint8)).save(tmp_path / "a.png")
    found = replace(PRESETS[preset], layout="nhwc", channels="rgb").load(tmp_path / "a.png")
    np.testing.assert_allclose(found[0, :, 0], [low, high], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("size=32", Preprocess(size=(32, 32))),
        ("size=32x48,layout=NHWC", Preprocess(size=(32, 48), layout="nhwc")),
        (
            "mean=0.1,0.2,0.3,std=0.5,scale=1/256",
            Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5,), scale=1 / 256),
        ),
        ("scale=1, mean=127, std=128, channels=bgr", Preprocess(scale=1, mean=(127,), std=(128,), channels="bgr")),
        ("-1-1,channels=gray", Preprocess(mean=(0.5,), std=(0.5,), channels="gray")),
        ("resize=40,size=32x32,filter=bicubic", Preprocess(resize=40, size=(32, 32), filter="bicubic")),
        ("imagenet,size=448x448", replace(PRESETS["imagenet"], size=(448, 448), resize=512)),
        ("imagenet,size=192x192,resize=200", replace(PRESETS["imagenet"], size=(192, 192), resize=200)),
    ],
)
def test_a_text_says_it_all(text: str, expected: Preprocess) -> None:
    assert Preprocess.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "problem", "fix"),
    [
        ("imagnet", "no preprocessing 'imagnet'", "did you mean 'imagenet'?"),
        ("", "no preprocessing ''", "known are imagenet, 0-1, -1-1, 0-255"),
        ("sise=3x3", "no 'sise'", "did you mean 'size'?"),
        ("size=3x3,4", "'4' in the preprocessing has no '='", "key=value"),
        ("size=3,size=4", "gives 'size' twice", "give it once"),
        ("size=axb", "'size=axb' in the preprocessing is not valid", "224x224"),
        ("layout=chw", "'layout=chw'", "nchw or nhwc"),
        ("channels=cmyk", "'channels=cmyk'", "rgb, bgr or gray"),
        ("filter=box", "'filter=box'", "bilinear or bicubic"),
        ("scale=1/0", "'scale=1/0'", "1/255"),
        ("scale=0", "scale=0", "other numbers"),
        ("std=0.5,0,0.5", "std=0.5,0,0.5 divides by zero", "other numbers"),
        ("std=nan", "std=nan", "other numbers"),
        ("mean=inf", "mean=inf is not finite", "finite"),
        ("mean=1,2", "mean has 2 numbers", "one for each"),
        ("channels=gray,std=1,2,3", "std has 3 numbers", "one number"),
        ("size=0x3", "without pixels", "at least 1"),
        ("resize=10,size=12x8", "resize=10 is less than size=12x8", "at least 12"),
    ],
)
def test_a_text_that_makes_no_sense_says_why(text: str, problem: str, fix: str, refuses: Any) -> None:
    with refuses(problem, fix=fix):
        Preprocess.parse(text)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_colour(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    found = Preprocess(layout="nchw", channels="rgb").load(path)
    assert found.shape == (3, 3, 4)
    np.testing.assert_allclose(found, 1)


def test_gray_has_one_channel(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), (255, 0, 0)).save(tmp_path / "a.png")
    found = Preprocess(layout="nchw", channels="gray", scale=1.0).load(tmp_path / "a.png")
    assert found.shape == (1, 3, 4)
    assert set(found.ravel()) == {76}  # 299 thousandths of red, ITU-R BT.601


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16)).save(tmp_path / "a.png")
    found = Preprocess(layout="nchw", channels="gray", scale=1.0).load(tmp_path / "a.png")
    assert found.ravel().tolist() == [0, 128, 255]


def test_an_image_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = Preprocess(layout="nchw", channels="gray", scale=1.0).load(tmp_path / "a.png")
    np.testing.assert_array_equal(found[0], np.rot90(pixels, -1))


@pytest.mark.parametrize(("content", "problem"), [(b"", "is empty"), (b"text", "cannot be read as an image")])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, refuses: Any, content: bytes, problem: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with refuses(f"a.jpg {problem}", fix="replace the file"):
        Preprocess(layout="nchw", channels="rgb").load(tmp_path / "a.jpg")


def test_a_truncated_image_is_named(tmp_path: Path, refuses: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:1500])
    with refuses("a.jpg cannot be read as an image", fix="replace the file"):
        Preprocess(layout="nchw", channels="rgb").load(tmp_path / "a.jpg")


def test_images_of_floats_have_no_agreed_range(tmp_path: Path, refuses: Any) -> None:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "a.tif")
    with refuses("has 32 bits per pixel", fix="8 bits"):
        Preprocess(layout="nchw", channels="rgb").load(tmp_path / "a.tif")
