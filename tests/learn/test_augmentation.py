"""Images vary by shifts and flips, which change no pixel's value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from qtool.errors import UsageError
from qtool.learn.augmentation import Augmentation, Variation, variations_named
from tests.conftest import Outcome
from tests.learn.conftest import Network

Run = Callable[..., Outcome]
_IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 40, 32), np.uint8)


def _padded(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """What torch's reflection padding leaves in a window that is moved by some rows and columns."""
    padded = torch.nn.functional.pad(torch.from_numpy(image.astype(np.float32))[None], (3, 3, 4, 4), mode="reflect")
    return padded[0, :, 4 + rows : 44 + rows, 3 + columns : 35 + columns].numpy().astype(image.dtype)


def _ways(image: np.ndarray, *, flips: bool) -> list[np.ndarray]:
    """Every image that shifts of up to a tenth, and flips, can make of one."""
    moved = [_padded(image, rows, columns) for rows in range(-4, 5) for columns in range(-3, 4)]
    return moved + [way[:, :, ::-1] for way in moved] if flips else moved


@pytest.mark.parametrize("names", ["shift", "shift,flip"])
def test_images_are_moved_and_mirrored_at_their_edges(names: str) -> None:
    vary = Augmentation({"image": "nchw"}, variations_named(names))
    for seed in range(4):
        (found,) = vary({"image": _IMAGES}, seed).values()
        assert found.dtype == _IMAGES.dtype
        for before, after in zip(_IMAGES, found, strict=True):
            assert any(np.array_equal(after, way) for way in _ways(before, flips="flip" in names))


def test_flips_alone_turn_some_images_around() -> None:
    (found,) = Augmentation({"image": "nchw"}, (Variation.FLIP,))({"image": _IMAGES}, 1).values()
    turned = [np.array_equal(after, before[:, :, ::-1]) for before, after in zip(_IMAGES, found, strict=True)]
    kept = [np.array_equal(after, before) for before, after in zip(_IMAGES, found, strict=True)]
    assert any(turned)
    assert any(kept)
    assert all(one != other for one, other in zip(turned, kept, strict=True))


def test_every_step_varies_them_anew_and_again_alike() -> None:
    vary = Augmentation({"image": "nchw"})
    first, again, second = (vary({"image": _IMAGES}, seed)["image"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)


def test_channels_last_vary_as_channels_first_and_other_inputs_stay() -> None:
    ids = np.arange(6)
    last = _IMAGES.transpose(0, 2, 3, 1)
    found = Augmentation({"a": "nchw", "b": "nhwc"})({"a": _IMAGES, "b": last, "ids": ids}, 3)
    np.testing.assert_array_equal(found["a"], found["b"].transpose(0, 3, 1, 2))
    assert found["ids"] is ids


def test_small_images_and_no_variations_change_nothing() -> None:
    small = _IMAGES[:, :, :12, :12]
    assert Augmentation({"image": "nchw"})({"image": small}, 1)["image"] is small
    assert Augmentation({"image": "nchw"}, ())({"image": _IMAGES}, 1)["image"] is _IMAGES


def test_names_of_variations() -> None:
    assert variations_named("none") == ()
    assert variations_named("flip, shift") == (Variation.SHIFT, Variation.FLIP)
    with pytest.raises(UsageError, match="images do not vary by 'zoom'"):
        variations_named("shift,zoom")


def test_a_training_says_what_varied(run: Run, network: Network, tmp_path: Path) -> None:
    data = tmp_path / "large.npz"
    np.savez(data, image=np.random.default_rng(1).normal(size=(48, 3, 24, 24)).astype(np.float32))
    proto = onnx.load(network.model)
    for axis in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_value = 24
    onnx.save(proto, network.model)
    quantized = tmp_path / "small.int8.onnx"
    made = run("quantize", network.model, "--calib-data", data, "--effort", "fast", "-o", quantized, "--target", "x86")
    assert made.code == 0, made.err

    def trained(*options: Any) -> Outcome:
        command = ("finetune", quantized, "--calib-data", data, "--steps", "20", "-o", tmp_path / "t.onnx", "-f")
        return run(*command, "--json", *options)

    varied, plain, wrong = trained(), trained("--augment", "none"), trained("--augment", "blur")
    assert (varied.json["augmented"], plain.json["augmented"]) == (["image"], [])
    assert varied.json["checks"][-1]["training_loss"] != plain.json["checks"][-1]["training_loss"]
    assert varied.json["learning_rate"] == pytest.approx(
        min(1.0, 5 * 10 ** (-varied.json["checks"][0]["sqnr_db"] / 20))
    )
    assert wrong.code == 2
    assert "images do not vary by 'blur'" in wrong.err
    assert "use shift, flip, shift,flip or none" in wrong.err
