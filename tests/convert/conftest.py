from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from qtool.cli.app import app

CODE = """
import torch


class Net(torch.nn.Module):
    def __init__(self, width=8, classes=5):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(width)
        self.head = torch.nn.Linear(width, classes)

    def forward(self, image):
        hidden = torch.relu(self.norm(self.stem(image)))
        return self.head(hidden.mean((2, 3)))


def make_net(width=8):
    print("building the net")
    return Net(width)


def not_a_net():
    return 3
"""

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the code of a small net and its weights as ``.pth``."""
    (tmp_path / "smallnet.py").write_text(CODE)
    torch.save(state_dict(), tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs ``qtool convert`` in the working folder."""

    def convert(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["convert", *arguments])

    return convert


@pytest.fixture
def net(folder: Path) -> torch.nn.Module:
    """The net, built and filled without qtool."""
    scope: dict[str, Any] = {"__name__": "reference"}
    exec(CODE, scope)
    module: torch.nn.Module = scope["Net"]()
    module.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))
    return module.eval()


@pytest.fixture
def photos(folder: Path) -> Path:
    path = folder / "photos.npz"
    noise = np.random.default_rng(1).standard_normal((6, 3, 16, 16))
    np.savez(path, image=noise.astype(np.float32), label=np.arange(6))
    return path


def state_dict() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"stem.weight": (8, 3, 3, 3), "head.weight": (5, 8), "head.bias": (5,), "norm.weight": (8,)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state |= {
        "norm.bias": torch.zeros(8),
        "norm.running_mean": torch.zeros(8),
        "norm.running_var": torch.full((8,), 2.0),
    }
    return state | {"norm.num_batches_tracked": torch.tensor(7)}
