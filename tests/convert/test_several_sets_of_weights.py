"""Checkpoints that hold the weights of a module more than once, under prefixes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

pytestmark = pytest.mark.slow

CODE = """
import torch

def build(width=3):
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 2))
"""


@pytest.fixture
def sets(folder: Path) -> Any:
    """Returns modules, and writes checkpoints with the weights of each under a prefix."""
    (folder / "net.py").write_text(CODE)
    names: dict[str, Any] = {}
    exec(CODE, names)

    def write(prefixes: list[str], *, width: int = 3, extra: dict[str, torch.Tensor] | None = None) -> list[Any]:
        torch.manual_seed(5)
        modules = [names["build"](width).eval() for _ in prefixes]
        state = dict(extra or {})
        for prefix, module in zip(prefixes, modules, strict=True):
            state |= {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}
        torch.save({"state_dict": state}, "w.ckpt")
        return modules

    return write


def convert(run: Any, *more: str) -> Any:
    return run("w.ckpt", "--model", "net.py:build", *more, "--input-shape", "input=batch,4", "-o", "m.onnx")


@pytest.mark.parametrize(
    ("prefixes", "taken"),
    [
        (["model.", "ema_model."], 1),
        (["ema_model.", "model."], 0),
        (["online_model.", "ema_model."], 1),
        (["model_ema.", "model."], 0),
        (["ema.module.", "net.module."], 0),
        (["", "ema."], 1),
        (["student.", "teacher.", "ema_model."], 2),
    ],
)
def test_the_moving_average_is_taken_and_the_rest_is_named(
    run: Any, sets: Any, prefixes: list[str], taken: int
) -> None:
    modules = sets(prefixes, extra={"step": torch.tensor(7), "initted": torch.tensor(True)})
    result = convert(run)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert f"took the weights under '{prefixes[taken]}', a moving average" in said
    for prefix in prefixes:
        if prefix != prefixes[taken]:
            assert (f"under '{prefix}'" if prefix else "without a prefix") in said
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    found = ort.InferenceSession("m.onnx", providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]
    np.testing.assert_allclose(found, modules[taken](torch.from_numpy(x)).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "prefixes", [["student.", "teacher."], ["", "teacher."], ["ema_model.", "model_ema.", "model."]]
)
def test_sets_that_nothing_tells_apart_are_named(run: Any, sets: Any, folder: Path, prefixes: list[str]) -> None:
    sets(prefixes)
    result = convert(run)
    assert result.exit_code == 2, result.output
    said = " ".join(result.stderr.split())
    assert "several sets of weights in the file fit net.py:build" in said
    for prefix in prefixes:
        assert (f"under '{prefix}'" if prefix else "without a prefix") in said
    assert "name.startswith(" in said
    assert not (folder / "m.onnx").exists()


def test_what_the_fix_says_leads_to_one_of_them(run: Any, sets: Any) -> None:
    sets(["student.", "teacher."])
    weights = torch.load("w.ckpt", weights_only=True)["state_dict"]
    torch.save({name: tensor for name, tensor in weights.items() if name.startswith("student.")}, "w.ckpt")
    assert convert(run).exit_code == 0


def test_a_set_of_another_shape_is_no_rival(run: Any, sets: Any) -> None:
    sets(["big."], width=6)
    big = torch.load("w.ckpt", weights_only=True)["state_dict"]
    sets(["small."], extra=big)
    result = convert(run)
    assert result.exit_code == 0, result.output
    assert "took the weights under 'small.'" in " ".join(result.stderr.split())
