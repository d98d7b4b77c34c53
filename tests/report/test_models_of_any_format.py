"""``qtool report`` on models that are no ONNX files: they are converted for as long as it takes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from qtool.cli.app import app

Pair = Any  # the dataclass in conftest.py, which tests cannot import

CODE = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 10, bias=False)

    def forward(self, x):
        return {"logits": self.layer(x)}
"""

pytestmark = pytest.mark.usefixtures("without_memory")


@pytest.fixture
def weights(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The float model of the pair as a state dict, beside the code that it belongs to."""
    (tmp_path / "net.py").write_text(CODE)
    torch.save({"layer.weight": torch.from_numpy(np.ascontiguousarray(pair.weights.T))}, tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "weights.pth"


def _report(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_weights_are_compared_as_their_graph_would_be(pair: Pair, weights: Path) -> None:
    options = ("--data", pair.data, "--no-latency", "--json")
    of_graph = json.loads(_report(pair.float_model, pair.quantized_model, *options).stdout)
    result = _report(weights, pair.quantized_model, "--model", "net.py:Net", *options)
    assert result.exit_code == 0, result.stderr
    of_weights = json.loads(result.stdout)
    for figure in ("sqnr_db", "agreement", "top1", "top1_float"):
        assert of_weights["figures"][figure] == pytest.approx(of_graph["figures"][figure], rel=1e-3)
    assert of_weights["float_model"]["path"] == str(weights)


def test_both_models_may_be_weights(pair: Pair, weights: Path) -> None:
    result = _report(weights, weights, "--model", "net.py:Net", "--data", pair.data, "--no-latency", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["figures"]["max_abs_error"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("weights.pth",), "--model pkg.module:factory"),
        (("weights.pth", "--model", "net.py:Nut"), "did you mean net.py:Net?"),
        (("FLOAT", "--model", "net.py:Net"), "have no effect with them"),
    ],
)
def test_what_is_missing_or_too_much_is_told(pair: Pair, weights: Path, arguments: tuple[str, ...], said: str) -> None:
    given = [str(pair.float_model) if one == "FLOAT" else one for one in arguments]
    result = _report(given[0], pair.quantized_model, *given[1:], "--data", pair.data)
    assert result.exit_code == 2
    assert said in result.stderr
