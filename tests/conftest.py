"""What holds for every test: property tests draw the same examples in each run, and slow machines are no failures.

And the command line, run in a folder of the test's own, and parts of the suite for runs that take turns.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import numpy_helper, parser
from typer.main import get_command
from typer.testing import CliRunner

from qtool.backends.machine_profile import MachineProfile
from qtool.backends.onnxruntime_cpu.measure_profile import measure_profile
from qtool.cli.app import app
from qtool.progress import SILENT, Progress
from tests.arm.emulated_runtime import EmulatedRuntime
from tests.arm.machines import NEW

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", type=_part, metavar="I/N", help="run every Nth test, from the Ith on: 1/4 is a quarter")
    parser.addoption("--arm64", action="store_true", help="open patterns in onnxruntime for 64-bit ARM: make test-arm")


def pytest_collection_finish() -> None:
    """Spares garbage collections what lives as long as the session, and has few of them: they took a tenth of it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 20, 50)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part = config.getoption("--part")
    if part is not None:
        number, parts = part
        kept = items[number - 1 :: parts]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


def _part(text: str) -> tuple[int, int]:
    """Reads I/N."""
    number, parts = (int(end) for end in text.split("/"))
    if not 1 <= number <= parts:
        raise ValueError(text)
    return number, parts


# Options of ``quantize`` that say what time is worth, or have nothing to do with it.
_ABOUT_TIME = {"--smallest", "--machine-profile", "--locked", "--help", "dynamic", "weights"}


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return ROOT


@dataclass(frozen=True)
class Outcome:
    """What one run of the command line left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _no_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed again because the machine is busy: with tests beside each other it always is."""
    monkeypatch.setattr("qtool.workflows.tune.model_pace._MOST_REPEATS", 0)


@pytest.fixture(autouse=True)
def _built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes typer's commands and torch's table of operators once in a process: in every run they took a sixth of it."""
    monkeypatch.setattr("typer.testing._get_command", _command)
    module: Any = sys.modules.get("torch.onnx._internal.exporter._registration")
    if module is not None:
        make = module.ONNXRegistry.from_torchlib
        monkeypatch.setattr(module.ONNXRegistry, "from_torchlib", partial(_copied, make))


_command = cache(get_command)


def _copied(make: Callable[..., Any], **options: Any) -> Any:
    """Returns a registry of its own, to which functions may be added."""
    known = _made(make, **options)
    registry = type(known)()
    registry.__dict__ |= {**vars(known), "functions": {name: [*found] for name, found in known.functions.items()}}
    return registry


@cache
def _made(make: Callable[..., Any], **options: Any) -> Any:
    return make(**options)


@pytest.fixture(autouse=True)
def _one_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures this machine once in a process, not in every quantization."""
    monkeypatch.setattr("qtool.workflows.tune.time_plan.measure_profile", _measured_profile)


def _measured_profile(_: Progress, *, threads: int = 0, **__: Any) -> MachineProfile:
    return _profile_of(threads)


@cache
def _profile_of(threads: int) -> MachineProfile:
    return measure_profile(SILENT, threads=threads)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs qtool in the test's own folder.

    Where a test says nothing about time, ``quantize`` measures none, and quantizes what is no faster, too: networks
    that are small enough for tests often are not. ``as_given`` leaves the arguments as they are.
    """
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, as_given: bool = False) -> Outcome:
        given = [str(argument) for argument in arguments]
        if given[:1] == ["quantize"] and not as_given and not _ABOUT_TIME & set(given):
            given += ["--smallest", "--machine-profile", "shipped"]
            monkeypatch.setattr("qtool.metrics.latency._TURN_SECONDS", 0.0)
        result = CliRunner().invoke(app, given)
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes the text of a graph with the given tensors as an ONNX file; nodes are called after their first outputs."""

    def call(name: str, text: str, *, opset: int = 18, **tensors: np.ndarray) -> Path:
        model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
        model.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in tensors.items())
        for node in model.graph.node:
            node.name = f"n_{node.output[0]}"
        onnx.checker.check_model(model)
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return call


@pytest.fixture(scope="session")
def arm64(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedRuntime]:
    """onnxruntime on a newer 64-bit ARM machine, which is emulated."""
    with EmulatedRuntime(NEW, tmp_path_factory.mktemp("arm64") / NEW.name) as emulated:
        yield emulated


@pytest.fixture
def runtime(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """The version of onnxruntime that opens patterns, to the minor number."""
    if request.config.getoption("--arm64"):
        emulated: EmulatedRuntime = request.getfixturevalue("arm64")
        return emulated.version
    return tuple(int(part) for part in version("onnxruntime").split(".")[:2])
