"""Checkpoints with more than weights: what may be allowed, wrappers of torch, names from torch.compile."""

import argparse
import collections
import datetime as dt
import fractions
import functools
import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import safetensors.torch
import torch


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


ALLOWED = {
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "deque": lambda: collections.deque([1.0, 2.0]),
    "partial": lambda: functools.partial(argparse.Namespace, lr=1),
    "dates": lambda: dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
    "fractions": lambda: fractions.Fraction(1, 3),
    "namespaces": lambda: argparse.Namespace(inner=collections.OrderedDict(a=argparse.Namespace())),
    "bytes": lambda: io.BytesIO(b"abc"),
    "chains": lambda: collections.ChainMap({"a": 1}, collections.UserDict(b=2)),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ALLOWED)
def test_what_the_fix_says_to_allow_leads_to_the_weights(run: Any, folder: Path, kind: str, legacy: bool) -> None:
    state = torch.load("weights.pth", weights_only=True)
    torch.save({"state_dict": state, "x": ALLOWED[kind]()}, "m.pth", _use_new_zipfile_serialization=not legacy)
    said = run("m.pth", "--to", "safetensors").stderr
    allowed = [part for name in re.findall(r"--allow-global ([\w.]+)", said) for part in ("--allow-global", name)]
    assert allowed, said
    result = run("m.pth", "--to", "safetensors", *allowed)
    assert result.exit_code == 0, result.output
    written = safetensors.torch.load_file("m.safetensors")
    assert set(written) == set(state)
    assert all(torch.equal(written[name], state[name]) for name in state)


def test_what_is_allowed_lets_nothing_else_in(run: Any, folder: Path) -> None:
    torch.save({"w": torch.ones(1), "x": collections.deque([Attack()])}, "m.pth")
    result = run("m.pth", "--to", "safetensors", "--allow-global", "collections.deque")
    assert result.exit_code == 2
    torch.save({"w": torch.ones(1), "x": collections.deque([argparse.Namespace()])}, "m.pth")
    result = run("m.pth", "--to", "safetensors", "--allow-global", "collections.deque")
    assert result.exit_code == 2
    assert "--allow-global argparse.Namespace" in result.stderr
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("wrap", "key"),
    [("DataParallel", None), ("DataParallel", "model"), ("AveragedModel", "model"), ("compile", None), ("both", None)],
)
def test_wrappers_of_torch_around_a_module_are_looked_through(
    run: Any, folder: Path, wrap: str, key: str | None
) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    wrapped = {
        "DataParallel": torch.nn.DataParallel,
        "AveragedModel": torch.optim.swa_utils.AveragedModel,
        "compile": torch.compile,
        "both": lambda module: torch.nn.DataParallel(torch.optim.swa_utils.AveragedModel(module)),
    }[wrap](net)
    torch.save(wrapped if key is None else {key: wrapped, "epoch": 3}, "m.pth")
    assert run("m.pth", "--to", "safetensors", "--trust-pickle").exit_code == 0
    assert set(safetensors.torch.load_file("m.safetensors")) == set(net.state_dict())
    result = run("m.pth", "--trust-pickle", "--input-shape", "input=batch,4")
    assert result.exit_code == 0, result.output
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    (y,) = ort.InferenceSession("m.onnx").run(None, {"input": x})
    np.testing.assert_allclose(y, net(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("part", [False, True])
def test_names_of_compiled_modules_fit_the_module(run: Any, folder: Path, suffix: str, part: bool) -> None:
    state = torch.load("weights.pth", weights_only=True)
    block = next(iter(state)).partition(".")[0] + "." if part else ""
    renamed = {
        f"{block}_orig_mod.{name.removeprefix(block)}" if name.startswith(block) else name: tensor
        for name, tensor in state.items()
    }
    if suffix == "pth":
        torch.save(renamed, "compiled.pth")
    else:
        safetensors.torch.save_file(renamed, "compiled.safetensors")
    shape = ("--input-shape", "image=batch,3,16,16")
    result = run(f"compiled.{suffix}", "--model", "smallnet:Net", *shape)
    assert result.exit_code == 0, result.output
