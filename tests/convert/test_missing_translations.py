"""Operators that torch's exporter does not know are written by qtool, and give what torch gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

_CODE = """
import torch


class Picking(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(4))

    def forward(self, x, mask):
        return torch.masked_select(x + self.shift, mask)
"""


@pytest.mark.parametrize(
    ("values", "mask"),
    [((3, 4), (3, 4)), ((3, 4), (3, 1)), ((1, 4), (3, 4)), ((3, 1, 4), (3, 5, 1)), ((3, 4), (1,))],
)
def test_what_a_mask_selects_is_what_torch_selects(
    run: Any, folder: Path, values: tuple[int, ...], mask: tuple[int, ...]
) -> None:
    (folder / "picking.py").write_text(_CODE, encoding="utf-8")
    torch.save({"shift": torch.tensor([0.5, -1.0, 0.0, 2.0])}, folder / "picking.pth")
    shapes = [f"x={','.join(map(str, values))}", f"mask={','.join(map(str, mask))}:bool"]
    options = [part for shape in shapes for part in ("--input-shape", shape)]
    result = run("picking.pth", "--model", "picking.py:Picking", "-o", "picking.onnx", *options)
    assert result.exit_code == 0, result.output
    session = ort.InferenceSession(folder / "picking.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(6)
    for share in (0.0, 0.5, 1.0):
        x, chosen = rng.normal(0, 1, values).astype(np.float32), rng.random(mask) < share
        shifted = torch.from_numpy(x) + torch.tensor([0.5, -1.0, 0.0, 2.0])
        expected = torch.masked_select(shifted, torch.from_numpy(chosen)).numpy()
        np.testing.assert_allclose(session.run(None, {"x": x, "mask": chosen})[0], expected, rtol=1e-6)
