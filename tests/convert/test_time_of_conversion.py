"""What keeps a conversion from taking much longer than the exporter."""

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qtool.errors import InputError
from qtool.formats.garbage import few_collections
from qtool.formats.torch import torch_program
from qtool.formats.torch.example_inputs import InputSpec
from qtool.progress import Silent
from qtool.runtime.graphs import open_graph, saved
from qtool.workflows.convert.program_check import compare_programs

SPEC = InputSpec(name="x", dims=("n", 4), dtype=np.dtype(np.float32))
WATCHING = """
import atexit, gc, json, os, pathlib
from smallnet import Net


def tell():
    told = {"frozen": gc.get_freeze_count(), "waiting": os.environ.get("OMP_WAIT_POLICY")}
    pathlib.Path("told.json").write_text(json.dumps(told))


def make_net():
    atexit.register(tell)
    return Net()
"""


@pytest.fixture
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_what_the_module_gave_before_the_export_is_not_computed_again() -> None:
    sizes: list[int] = []

    def reference(feed: Any) -> list[np.ndarray]:
        sizes.append(len(feed["x"]))
        return [np.sin(feed["x"])]

    def compared(first: np.ndarray) -> list[int]:
        comparisons = compare_programs(
            [SPEC],
            {"x": np.ones((3, 4), np.float32)},
            reference=reference,
            converted=lambda feed: {"y": np.sin(feed["x"])},
            first_expected=[first],
            progress=Silent(),
        )
        return [comparison.sizes["n"] for comparison in comparisons]

    assert compared(np.sin(np.ones((2, 4), np.float32))) == [2, 3, 1]
    assert sizes == [3, 1]
    with pytest.raises(InputError, match="with n=2"):
        compared(np.zeros((2, 4), np.float32))


def test_a_graph_computes_the_same_out_of_a_file_as_out_of_a_message(folder: Path, net: torch.nn.Module) -> None:
    spec = InputSpec(name="image", dims=("n", 3, 16, 16), dtype=np.dtype(np.float32))
    feed = {"image": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    model = torch_program.export(net, [torch_program.BoundInput(parameter="image", spec=spec)], feed)
    with saved(model, folder, 0) as source:
        assert isinstance(source, Path)
    with saved(model, folder) as source:
        assert isinstance(source, bytes)
    results = []
    for largest in (0, 1 << 30):
        with open_graph(model, largest_message_bytes=largest) as session:
            results.append(next(iter(session.run(feed).values())))
    np.testing.assert_array_equal(*results)


def test_outputs_that_a_module_writes_into_again_stay_as_they_were() -> None:
    class Reusing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.buffer = torch.zeros(2, 4)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"twice": self.buffer.copy_(x * 2)}

    module, x = Reusing(), np.ones((2, 4), np.float32)
    inputs = [torch_program.BoundInput(parameter="x", spec=SPEC)]
    outputs = torch_program.run_named(module, inputs, {"x": x})
    torch_program.run(module, inputs, {"x": 5 * x})
    assert outputs.names == ("twice",)
    np.testing.assert_array_equal(outputs.values[0], 2 * x)


def test_the_garbage_collector_runs_rarely_during_an_export_only(thresholds: None) -> None:
    during: list[int] = []

    class Watching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            during.append(gc.get_threshold()[0])
            return x + 1

    gc.set_threshold(700, 10, 10)
    inputs = [torch_program.BoundInput(parameter="x", spec=SPEC)]
    torch_program.export(Watching(), inputs, {"x": np.ones((2, 4), np.float32)})
    assert during
    assert min(during) > 700
    assert gc.get_threshold() == (700, 10, 10)


def test_a_garbage_collector_that_is_off_or_rarer_still_stays_so(thresholds: None) -> None:
    for first in (0, 1_000_000):
        gc.set_threshold(first, 10, 10)
        with suppress(KeyError), few_collections():
            assert gc.get_threshold()[0] == first
            raise KeyError
        assert gc.get_threshold() == (first, 10, 10)


@pytest.mark.parametrize("chosen", [None, "ACTIVE"])
def test_the_command_ends_at_once_and_lets_threads_sleep(
    folder: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    (folder / "watching.py").write_text(WATCHING)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if chosen is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
    given = ("weights.pth", "--to", "safetensors", "--model", "watching:make_net")
    result = subprocess.run(
        [sys.executable, "-m", "qtool", "convert", *given], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    told = json.loads((folder / "told.json").read_text())
    assert told["frozen"] > 10_000
    assert told["waiting"] == (chosen or "PASSIVE")
