"""Where training runs."""

from __future__ import annotations

import torch

from qtool.errors import UsageError

DEVICES = ("auto", "cpu", "cuda")


def device_named(name: str) -> torch.device:
    """Returns the device called ``name``; ``auto`` takes CUDA where it is.

    Results are the same on the same device: kernels that are not deterministic are not used.

    Raises:
        UsageError: there is no such device here.
    """
    if name not in DEVICES:
        raise UsageError(f"no device is called {name}", fix=f"use {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch finds no CUDA device here", fix="train with --device cpu")
    cuda = name != "cpu" and torch.cuda.is_available()
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device("cuda" if cuda else "cpu")
