"""Trains the digit classifier for weights of 4 bits in a training loop of its own (QAT), and writes the integers.

Run: python samples/05_qat.py [FOLDER]

Writes into FOLDER (default: demo-output). Weights have one scale a tensor, which costs the most; hardware with 4 bits
is simulated, as the integers lie in 8. The loop is plain torch; what it aims at are the float model's scores, and
labels would do as well.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from mnist_cnn import build

from qtool import qat
from qtool.backends.targets import preset
from qtool.calib.grid import Grid

SAMPLES = Path(__file__).resolve().parent
STEPS, BATCH = 240, 32
LARGEST_LOSS = 0.004


def main() -> int:
    """Trains, writes and judges; returns 1 where accuracy falls by more than ``LARGEST_LOSS``."""
    parser = argparse.ArgumentParser(description="Quantization-aware training of the digit model.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo-output"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    float_module = build()
    float_module.load_state_dict(torch.load(SAMPLES / "mnist_cnn.pth", weights_only=True))
    float_module.eval()
    with np.load(SAMPLES / "digits_calib.npz") as file:
        digits = torch.from_numpy(file["image"])

    scheme = replace(preset("x86"), weights=Grid(bits=4), per_channel=False)
    module = qat.prepare(float_module, digits[:128], scheme)
    print(f"accuracy in float: {accuracy(float_module):.4f}, with weights of 4 bits: {accuracy(module):.4f}")

    train(module, float_module, digits)
    after, before = accuracy(module), accuracy(float_module)
    path = qat.export(module, folder / "digits.qat.onnx", example=digits[:16], force=True)
    print(f"after training: {after:.4f}, in {path}")
    return int(before - after > LARGEST_LOSS)


def train(module: torch.nn.Module, float_module: torch.nn.Module, digits: torch.Tensor) -> None:
    """Distils: the float module's scores are the aim, for digits that are shifted by up to two pixels."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        batch = digits[torch.randint(0, len(digits), (BATCH,))]
        batch = torch.roll(batch, torch.randint(-2, 3, (2,)).tolist(), dims=(2, 3))
        with torch.no_grad():
            aim = torch.log_softmax(float_module(batch), -1)
        given = torch.log_softmax(module(batch), -1)
        loss = torch.nn.functional.kl_div(given, aim, log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def accuracy(module: torch.nn.Module) -> float:
    """Returns the share of the evaluation digits that ``module`` tells right."""
    with np.load(SAMPLES / "digits_eval.npz") as file, torch.no_grad():
        found = torch.cat([module(batch).argmax(-1) for batch in torch.from_numpy(file["image"]).split(200)])
        return float((found.numpy() == file["_label"]).mean())


if __name__ == "__main__":
    sys.exit(main())
