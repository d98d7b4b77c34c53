"""What torch's two exporters write comes through preparing unchanged, and gets a plan."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.nn import functional

from qtool.backends.targets import PRESETS
from qtool.planning import build_plan
from qtool.runtime.session import Session
from qtool.selection import NodeSelection
from qtool.workflows.quantize.prepare import prepare


class _Everything(nn.Module):
    """Some of all that networks for images and sequences are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.linear = nn.Linear(8, 8)
        self.layer_norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = (x - 0.5) / 0.25
        y = functional.relu6(self.norm(self.stem(x)))
        y = functional.silu(self.depthwise(y)) + y
        y = y * torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        wide = self.up(y) + functional.interpolate(y, scale_factor=2.0)
        steps = y.flatten(2).transpose(1, 2)
        steps = functional.gelu(self.linear(self.layer_norm(steps)))
        attended, _ = self.attention(steps, steps, steps)
        return (steps + attended).mean(1), functional.hardswish(wide)


@pytest.fixture(scope="module", params=["program", "trace"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("exports") / f"{request.param}.onnx"
    options: dict[str, Any] = (
        {"dynamo": True, "verbose": False} if request.param == "program" else {"dynamo": False, "opset_version": 13}
    )
    logging.disable(logging.WARNING)
    # Without gradients torch takes a path through attention that its older exporter does not know.
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(_Everything().eval(), (torch.randn(2, 3, 8, 8),), path, **options)
    logging.disable(logging.NOTSET)
    return path


def test_an_exported_model_keeps_its_outputs_and_gets_a_plan(exported: Path) -> None:
    model = ir.load(exported)
    ir.external_data.load_to_model(model)
    before = Session(exported, threads=1, level="none")
    feeds = {before.inputs[0].name: np.random.default_rng(0).normal(0, 1, (2, 3, 8, 8)).astype(np.float32)}
    expected = before.run(feeds)
    prepared = prepare(model)
    got = Session(ir.to_proto(prepared).SerializeToString(), threads=1, level="none").run(feeds)
    assert list(got) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-4, atol=1e-5)
    operators = [node.op_type for node in prepared.graph]
    assert not {"BatchNormalization", "Constant", "Identity"} & set(operators)
    plan = build_plan(prepared, PRESETS["x86"], NodeSelection())
    layers = [name for name, operator in plan.integer_nodes.items() if operator in ("Conv", "Gemm", "MatMul")]
    # Three convolutions, the linear layer, and the projections and products of attention, some of which torch joins.
    assert len(layers) >= 7
