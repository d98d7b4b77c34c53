"""Fake quantization of a torch module is what the target runs, bit by bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from qtool import qat
from qtool.backends.targets import preset
from qtool.calib.grid import Grid
from qtool.errors import OutputError, UsageError
from qtool.schemes import Scheme

FOUR_BITS = replace(preset("x86"), weights=Grid(bits=4), per_channel=False)


class Net(nn.Module):
    """Convolutions with a batch normalization, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.head = nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = torch.relu(self.depthwise(torch.relu(self.norm(self.conv(image)))))
        return self.head(maps.mean((2, 3))), maps


@pytest.fixture
def net() -> Net:
    torch.manual_seed(5)
    made = Net()
    made(torch.randn(64, 2, 10, 10))  # statistics of the normalization
    return made.eval()


def _batch(seed: int = 0, count: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 2, 10, 10)).astype(np.float32))


def _train(module: nn.Module, net: nn.Module, steps: int = 60) -> list[float]:
    optimizer, losses = torch.optim.Adam(module.parameters(), lr=2e-3), []
    for step in range(steps):
        batch = _batch(100 + step)
        with torch.no_grad():
            wanted = net(batch)[0]
        loss = (module(batch)[0] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("scheme", [preset("x86"), FOUR_BITS], ids=["8 bits", "4 bits"])
def test_what_is_written_computes_what_the_module_does(net: Net, scheme: Scheme, tmp_path: Path) -> None:
    module = qat.prepare(net, _batch(), scheme)
    _train(module, net, 5)
    path = qat.export(module, tmp_path / "net.onnx", example=_batch(1))
    session = ort.InferenceSession(str(path))
    found = session.run(None, {session.get_inputs()[0].name: _batch(2).numpy()})
    with torch.no_grad():
        wanted = module(_batch(2))
    for array, tensor in zip(found, wanted, strict=True):
        noise = np.square(array - tensor.numpy()).sum()
        assert noise < 1e-3 * np.square(tensor.numpy()).sum()


def test_integers_are_the_nearest_of_the_trained_weights(net: Net, tmp_path: Path) -> None:
    module = qat.prepare(net, _batch(), FOUR_BITS)
    _train(module, net, 20)
    graph = onnx.load(qat.export(module, tmp_path / "net.onnx", example=_batch(1))).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    trained = {tuple(parameter.shape): parameter.detach().numpy() for parameter in module.parameters()}
    checked = 0
    for node in graph.node:
        integers = stored.get(node.input[0])
        if node.op_type != "DequantizeLinear" or integers is None or integers.ndim != 4:
            continue
        scale = stored[node.input[1]]
        nearest = np.clip(np.rint(trained[integers.shape] / scale), -7, 7)
        assert (integers == nearest).mean() > 0.999  # but for halves
        assert np.unique(integers).size > 4
        checked += 1
    assert checked == 2


def test_training_takes_back_what_four_bits_lose(net: Net) -> None:
    module = qat.prepare(net, _batch(), FOUR_BITS)
    losses = _train(module, net)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])


def test_the_float_module_stays_as_it_is(net: Net) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    module = qat.prepare(net, _batch(), preset("x86"))
    _train(module, net.eval(), 3)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_examples_that_do_not_fit_and_files_that_exist_are_refused(net: Net, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes 1 inputs"):
        qat.prepare(net, (_batch(), _batch()))
    with pytest.raises(UsageError, match="no tensor"):
        qat.prepare(net, {})
    module = qat.prepare(net, {"image": _batch()}, preset("x86"))
    kept = tmp_path / "kept.onnx"
    kept.write_bytes(b"mine")
    with pytest.raises(OutputError):
        qat.export(module, kept, example=_batch())
    assert kept.read_bytes() == b"mine"
