"""Trains the samples' model and makes the samples' data, from the MNIST digits in one ``.npz``.

Run: python samples/train_mnist_cnn.py MNIST.npz [FOLDER]

MNIST.npz holds ``train_image`` and ``test_image``, uint8 (digits, 28, 28), with ``train_label`` and ``test_label``.
Into FOLDER (default: beside this script) it writes ``mnist_cnn.pth`` (the state dict), ``digits_calib.npz`` and
``digits_eval.npz``. Seeded: the same machine and versions make the same weights. Takes about a minute on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mnist_cnn import build
from torch import nn

EPOCHS = 9
BATCH = 128
PEAK_LEARNING_RATE = 4e-3
CALIBRATION_DIGITS = 300
EVALUATION_DIGITS = 2000


def scaled(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Returns bytes (digits, 28, 28) as the model takes them: (digits, 1, 28, 28), from 0 to 1."""
    return images[:, None].astype(np.float32) / np.float32(255)


def train(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """Returns a model trained on ``images``, shifted by up to two pixels at random."""
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    steps = -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * steps)
    model.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(images)).split(BATCH):
            shifts = torch.randint(-2, 3, (2,)).tolist()
            digits = torch.roll(images[batch], shifts, dims=(2, 3))
            loss = nn.functional.cross_entropy(model(digits), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {total / len(images):.4f}")
    return model.eval()


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Returns the share of ``images`` whose largest logit is at their label."""
    with torch.no_grad():
        hits = sum(
            int((model(part).argmax(1) == truth).sum())
            for part, truth in zip(images.split(500), labels.split(500), strict=True)
        )
    return hits / len(images)


def write_samples(folder: Path, model: nn.Module, digits: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes the weights, digits to calibrate on (none of them a test digit) and digits to judge by."""
    torch.save(model.state_dict(), folder / "mnist_cnn.pth")
    np.savez_compressed(folder / "digits_calib.npz", image=scaled(digits["train_image"][:CALIBRATION_DIGITS]))
    np.savez_compressed(
        folder / "digits_eval.npz",
        image=scaled(digits["test_image"][:EVALUATION_DIGITS]),
        _label=digits["test_label"][:EVALUATION_DIGITS].astype(np.int64),
    )


def main() -> None:
    """Reads the digits, trains, judges and writes."""
    parser = argparse.ArgumentParser(description="Trains the samples' model and makes the samples' data.")
    parser.add_argument("digits", type=Path, metavar="MNIST.npz")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    with np.load(arguments.digits) as file:
        digits = {name: file[name] for name in file.files}
    images, labels = (
        {part: torch.from_numpy(convert(digits[f"{part}_{what}"])) for part in ("train", "test")}
        for what, convert in (("image", scaled), ("label", lambda values: values.astype(np.int64)))
    )
    model = train(images["train"], labels["train"])
    for name, count in (("all", len(labels["test"])), ("the samples'", EVALUATION_DIGITS)):
        share = accuracy(model, images["test"][:count], labels["test"][:count])
        print(f"right on {share:.2%} of {name} {count} test digits")
    write_samples(arguments.folder, model, digits)


if __name__ == "__main__":
    main()
