"""A small network with every kind of layer that adapters change, and adapters that PEFT made for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D
from typer.testing import CliRunner, Result

from qtool.cli.app import app

State = dict[str, torch.Tensor]


class Net(nn.Module):
    """Layers by the names that the tests use; only their parameters matter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.block = nn.ModuleDict(
            {
                "wide": nn.Linear(12, 18),
                "square": nn.Linear(18, 18, bias=False),
                "conv": nn.Conv2d(4, 6, 3),
                "point": nn.Conv2d(4, 6, 1),
                "wave": nn.Conv1d(4, 6, 5),
                "flipped": Conv1D(18, 12),
                "attention": nn.MultiheadAttention(12, 2),
            }
        )
        self.head = nn.Linear(18, 5)
        self.norm = nn.LayerNorm(18)


@dataclass(frozen=True)
class Trained:
    """An adapter in a folder, and what PEFT makes of it and the base."""

    folder: Path
    base: Path
    merged: State
    exact: State


Train = Callable[..., Trained]


def randomize(parameters: Iterable[nn.Parameter], seed: int, spread: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_((parameter + noise).to(parameter.dtype))


@pytest.fixture
def net() -> nn.Module:
    module = Net()
    randomize(module.parameters(), seed=1)
    return module


@pytest.fixture
def base(tmp_path: Path, net: nn.Module) -> Path:
    """The weights of the network in a file."""
    path = tmp_path / "base.safetensors"
    save_file(net.state_dict(), path)
    return path


@pytest.fixture
def noise() -> Callable[..., torch.Tensor]:
    """Makes a random tensor of a given shape, always the same for the same one."""

    def make(*shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(shape) + 10 * len(shape))
        return torch.randn(shape, generator=generator) * 0.3

    return make


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    """Writes tensors to a file."""

    def write(tensors: State, name: str = "style.safetensors") -> Path:
        save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def train(tmp_path: Path, net: nn.Module) -> Train:
    """Lets PEFT build an adapter for ``module``, fills it with noise, saves it, and merges it."""

    def build(config: Any, *, name: str = "adapter", seed: int = 2, module: nn.Module | None = None) -> Trained:
        chosen = copy.deepcopy(net if module is None else module)
        base = tmp_path / "base.safetensors"
        save_file({key: value.contiguous() for key, value in chosen.state_dict().items()}, base)
        torch.manual_seed(seed)  # PEFT draws the first matrices
        model = peft.get_peft_model(chosen, config)
        randomize((value for value in model.parameters() if value.requires_grad), seed)
        folder = tmp_path / name
        model.save_pretrained(folder)
        double = copy.deepcopy(model).double().merge_and_unload()
        merged = model.merge_and_unload()
        return Trained(folder=folder, base=base, merged=merged.state_dict(), exact=double.state_dict())

    return build


@pytest.fixture
def merge(tmp_path: Path) -> Callable[..., State]:
    """Runs ``qtool merge-lora`` and returns the tensors that it wrote."""

    def run(base: Path, *arguments: object, output: str = "merged.safetensors") -> State:
        result = invoke("merge-lora", base, *arguments, "-o", tmp_path / output, "--force")
        assert result.exit_code == 0, result.output
        if output.endswith(".safetensors"):
            return load_file(tmp_path / output)
        state: State = torch.load(tmp_path / output, weights_only=True)
        return state

    return run


def invoke(name: str, *arguments: object) -> Result:
    return CliRunner().invoke(app, [name, *map(str, arguments)])


@pytest.fixture
def command() -> Callable[..., Result]:
    """Runs ``qtool merge-lora``."""
    return lambda *arguments: invoke("merge-lora", *arguments)


@pytest.fixture
def merge_graph(tmp_path: Path) -> Callable[..., Path]:
    """Runs ``qtool merge-lora`` on a graph and returns the result's path."""

    def run(graph: Path, *arguments: object) -> Path:
        output = tmp_path / "merged.onnx"
        result = invoke("merge-lora", graph, *arguments, "-o", output, "--force")
        assert result.exit_code == 0, result.output
        return output

    return run


@pytest.fixture
def quantize(tmp_path: Path) -> Callable[..., Path]:
    """Quantizes a graph without anything that moves weights, and returns the result's path."""

    def run(graph: Path, data: Path) -> Path:
        output = tmp_path / "integers.onnx"
        result = invoke("quantize", graph, "--calib-data", data, "--effort", "fast", "-o", output, "--force")
        assert result.exit_code == 0, result.output
        return output

    return run


@pytest.fixture
def distance() -> Callable[[State, State], float]:
    """Returns the largest relative difference of two states that have the same names."""

    def measure(state: State, other: State) -> float:
        assert set(state) == set(other)
        worst = 0.0
        for name, values in state.items():
            reference = other[name].double()
            norm = max(float(torch.linalg.vector_norm(reference)), 1e-30)
            worst = max(worst, float(torch.linalg.vector_norm(values.double() - reference)) / norm)
        return worst

    return measure


@pytest.fixture
def refused() -> Callable[..., str]:
    """Runs the command, which must end with exit code 2, and returns what it says."""

    def run(*arguments: object) -> str:
        result = invoke("merge-lora", *arguments)
        assert result.exit_code == 2, result.output
        assert "fix:" in result.stderr
        return result.stderr

    return run
