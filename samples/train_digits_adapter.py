"""Trains a LoRA adapter that teaches the samples' model dark digits on white paper, from the MNIST digits.

Run: python samples/train_digits_adapter.py MNIST.npz [FOLDER]

MNIST.npz is what ``train_mnist_cnn.py`` takes. FOLDER (default: ``inverted_digits`` beside this script) gets
``adapter_config.json`` and ``adapter_model.safetensors``. Needs PEFT, which the extra ``dev`` installs. Seeded; takes
about a minute on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import peft
import torch
from mnist_cnn import build
from torch import nn
from train_mnist_cnn import BATCH, accuracy, scaled

EPOCHS = 6
LEARNING_RATE = 5e-3
TRAINING_DIGITS = 20_000
LAYERS = ["stem.0", "down.0", "conv1", "conv2", "classifier"]


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Trains what may be trained on ``images``; the running means of the base stay as they are."""
    model.eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-len(images) // BATCH))
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {total / len(images):.4f}")


def main() -> None:
    """Reads the digits, inverts them, trains, judges and writes."""
    samples = Path(__file__).parent
    parser = argparse.ArgumentParser(description="Trains the samples' adapter.")
    parser.add_argument("digits", type=Path, metavar="MNIST.npz")
    parser.add_argument("folder", type=Path, nargs="?", default=samples / "inverted_digits")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    with np.load(arguments.digits) as file:
        images = torch.from_numpy(1 - scaled(file["train_image"][:TRAINING_DIGITS]))
        labels = torch.from_numpy(file["train_label"][:TRAINING_DIGITS].astype(np.int64))
        tests = torch.from_numpy(1 - scaled(file["test_image"]))
        truth = torch.from_numpy(file["test_label"].astype(np.int64))
    base = build()
    base.load_state_dict(torch.load(samples / "mnist_cnn.pth", weights_only=True))
    print(f"before: right on {accuracy(base.eval(), tests, truth):.2%} of {len(truth)} inverted test digits")
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, lora_alpha=16, target_modules=LAYERS))
    train(model, images, labels)
    print(f"after: right on {accuracy(model.eval(), tests, truth):.2%}")
    model.save_pretrained(arguments.folder)
    (arguments.folder / "README.md").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
