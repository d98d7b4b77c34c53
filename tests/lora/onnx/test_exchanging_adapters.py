"""Graphs whose adapters are exchanged as they run compute what the merged ones do."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import peft
import pytest
import torch
from torch import nn

from tests.lora.graphs import export, merged_module

X = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(3))


class Layers(nn.Module):
    """A MatMul, a Gemm, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(12, 10)
        self.conv = nn.Conv1d(3, 4, 3)
        self.last = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.last(self.conv(torch.relu(self.first(x))).flatten(1))
        return output


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "base.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Layers().eval(), (X,), path, input_names=["x"], output_names=["y"], dynamo=False, opset_version=17
        )
    return path


def computed(trained: Any) -> Any:
    module = copy.deepcopy(Layers()).eval()
    module.load_state_dict(trained.merged)
    with torch.no_grad():
        return module(X).numpy()


def test_each_adapter_gives_its_merged_outputs_and_none_those_of_the_base(
    train: Any, command: Any, graph: Path, tmp_path: Path
) -> None:
    one = train(peft.LoraConfig(r=3, target_modules=["first", "conv"]), name="one", module=Layers())
    two = train(peft.LoraConfig(r=2, target_modules=["first", "last"]), name="two", module=Layers(), seed=7)
    result = command(
        *(graph, one.folder, two.folder, "--base-weights", one.base, "--as-adapter"), "-o", tmp_path / "out.onnx"
    )
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["x"]
    with torch.no_grad():
        before = Layers().eval()(X).numpy()
    np.testing.assert_allclose(session.run(None, {"x": X.numpy()})[0], before, atol=1e-5)
    for trained in (one, two):
        adapter = onnxruntime.LoraAdapter()
        adapter.Load(str(tmp_path / f"{trained.folder.name}.onnx_adapter"))
        options = onnxruntime.RunOptions()
        options.add_active_adapter(adapter)
        outputs = session.run(None, {"x": X.numpy()}, options)[0]
        np.testing.assert_allclose(outputs, computed(trained), atol=1e-4, rtol=1e-5)
        assert float(np.abs(outputs - before).max()) > 0.1


class Words(nn.Module):
    """An embedding, which a Gather reads, and a layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(30, 12)
        self.last = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.last(self.embed(x))
        return output


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_rows_of_embeddings_are_changed_as_they_are_read(
    train: Any, command: Any, tmp_path: Path, dynamo: bool
) -> None:
    ids = torch.tensor([[3, 29, 0], [7, 7, 1]])
    trained = train(peft.LoraConfig(r=2, target_modules=["embed", "last"]), module=Words())
    graph = export(Words(), ids, tmp_path / "words.onnx", dynamo=dynamo)
    result = command(
        *(graph, trained.folder, "--base-weights", trained.base, "--as-adapter"), "-o", tmp_path / "out.onnx"
    )
    assert result.exit_code == 0, result.output
    assert "lora_product" not in {node.name.rpartition(".")[2] for node in onnx.load(tmp_path / "out.onnx").graph.node}
    adapter, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    adapter.Load(str(tmp_path / "adapter.onnx_adapter"))
    options.add_active_adapter(adapter)
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    merged = merged_module(Words(), trained.merged)
    for chosen, module in ((options, merged), (None, Words())):
        with torch.no_grad():
            expected = module(ids).numpy()
        np.testing.assert_allclose(session.run(None, {"x": ids.numpy()}, chosen)[0], expected, atol=1e-5)


def test_what_cannot_be_exchanged_is_refused(train: Any, refused: Any, graph: Path) -> None:
    trained = train(peft.LoraConfig(r=3, target_modules=["first"], use_dora=True), module=Layers())
    options = ("--base-weights", trained.base, "--as-adapter")
    assert "only plain LoRA" in refused(graph, trained.folder, *options)
    assert "for an ONNX graph" in refused(trained.base, trained.folder, "--as-adapter")
    for other in (("--unmerge",), ("--combine", "ties"), ("--scales", "keep")):
        assert "drop --combine" in refused(graph, trained.folder, *options, *other)
    assert "one file" in refused(graph, trained.folder, trained.folder, *options)
