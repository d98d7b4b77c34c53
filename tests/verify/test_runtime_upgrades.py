"""``qtool verify --onnxruntime``: what other versions make of a model.

Packages of those versions are made here and installed without a network: each passes on to the onnxruntime and the
numpy that are installed, and does one thing in another way. One slow test installs real ones.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtool.runtime.environments import checked_versions
from qtool.runtime.foreign_runtime import PROBE

_REST = {"optimized_to": "", "fuses_signed": False}
_HERE = Path(onnxruntime.__file__).parent
_PASSES_ON = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("onnxruntime", {str(_HERE / "__init__.py")!r},
                                              submodule_search_locations=[{str(_HERE)!r}])
real = importlib.util.module_from_spec(spec)
sys.modules["onnxruntime"] = real
spec.loader.exec_module(real)
real.__version__ = VERSION
Session, Level = real.InferenceSession, real.GraphOptimizationLevel
"""
# What stands in for a version.
_VERSIONS = {
    "1.90.0": "",
    "1.91.0": """
def refuses(*arguments, **keywords):
    raise RuntimeError("unknown operator")
real.InferenceSession = refuses
""",
    "1.92.0": """
class Changed(Session):
    def run(self, *arguments):
        return [value * 1.5 for value in super().run(*arguments)]
real.InferenceSession = Changed
""",
    "1.93.0": """
def unfused(path, options, **keywords):
    options.graph_optimization_level = Level.ORT_DISABLE_ALL
    return Session(path, options, **keywords)
real.InferenceSession = unfused
""",
    "1.94.0": """
import time
class Slow(Session):
    def run(self, *arguments):
        end = time.perf_counter() + 0.02
        while time.perf_counter() < end:
            pass
        return super().run(*arguments)
real.InferenceSession = Slow
""",
    "1.95.0": """
import os, signal
class Crashes(Session):
    def run(self, *arguments):
        os.kill(os.getpid(), signal.SIGSEGV)
real.InferenceSession = Crashes
""",
}


def _wheel(folder: Path, name: str, version: str, files: dict[str, str], tag: str = "py3-none-any") -> None:
    """Writes a wheel, https://packaging.python.org/en/latest/specifications/binary-distribution-format/."""
    about = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text.encode())}")
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{about}/RECORD", "\n".join([*rows, f"{about}/RECORD,,"]) + "\n")


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wheels that pip takes instead of an index."""
    folder = tmp_path_factory.mktemp("packages")
    # A line of such a file is a folder to look for packages in, behind the environment's own.
    _wheel(folder, "numpy", "99.0", {"numpy_here.pth": str(Path(np.__file__).parents[1]) + "\n"})
    for version, differs in _VERSIONS.items():
        text = _PASSES_ON.replace("VERSION", repr(version)) + differs
        _wheel(folder, "onnxruntime", version, {"onnxruntime/__init__.py": text})
    _wheel(folder, "onnxruntime", "1.96.0", {"onnxruntime/__init__.py": ""}, tag="cp27-cp27m-win32")
    return folder


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests keep what they have installed."""
    return tmp_path_factory.mktemp("environments")


@pytest.fixture
def verify(
    run: Callable[..., Any], packages: Path, environments: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Runs ``qtool verify`` without a network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packages))

    def call(*arguments: object, keep: bool = True) -> Any:
        kept = ["--keep-environments", environments] if keep else []
        return run("verify", *arguments, *kept, "--threads", "1", "--rounds", "8")

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two layers between Q and DQ, and a node without a name."""
    rng = np.random.default_rng(0)
    stored = {
        "s": np.float32(0.05),
        "z": np.uint8(128),
        "w": rng.integers(-127, 127, (6, 4)).astype(np.int8),
        "v": rng.integers(-127, 127, (4, 3)).astype(np.int8),
        "ws": np.float32(0.01),
        "wz": np.int8(0),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        node("MatMul", ["xd", "wd"], ["a"], "first"),
        node("QuantizeLinear", ["a", "s", "z"], ["aq"]),
        node("DequantizeLinear", ["aq", "s", "z"], ["ad"]),
        node("DequantizeLinear", ["v", "ws", "wz"], ["vd"]),
        node("MatMul", ["ad", "vd"], ["y"], "second"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", 6])],
        [value("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    path = tmp_path / "two.int8.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_version_that_does_the_same_changes_nothing(verify: Any, model: Path) -> None:
    outcome = verify(model, "--onnxruntime", "1.90.0", "--json")
    assert outcome.code == 0, outcome.err
    here, other = outcome.json["versions"]
    assert (here["version"], here["installed"]) == (onnxruntime.__version__, True)
    assert (other["version"], other["installed"], other["problem"]) == ("1.90.0", False, None)
    assert other["outputs"][0]["max_abs_error"] == 0
    assert other["integer_nodes"] == other["quantizable_nodes"] == 2
    assert other["kernels"] == here["kernels"] == {"QLinearMatMul": 1, "MatMulIntegerToFloat": 1}
    assert other["speedup"]["low"] <= other["speedup"]["median"] <= other["speedup"]["high"]
    assert 0 < other["fastest_ms"] <= other["time_ms"]["median"]
    # Load on the machine may delay one of two equal processes, but is no change.
    assert other["changes"] == []
    assert outcome.json["compared_on"] == "random inputs"


@pytest.mark.parametrize(
    ("version", "change", "loads"),
    [
        ("1.92.0", "'y' differs: 6.0 dB", "yes"),
        pytest.param("1.91.0", "does not run it: unknown operator", "no", marks=pytest.mark.slow),
        pytest.param("1.93.0", "2 nodes fewer on integers", "yes", marks=pytest.mark.slow),
        pytest.param("1.94.0", "times as long", "yes", marks=pytest.mark.slow),
        pytest.param("1.95.0", "ended with SIGSEGV", "stops as it runs", marks=pytest.mark.slow),
    ],
)
def test_what_a_version_changes_is_said_and_fails_the_gate(
    verify: Any, model: Path, version: str, change: str, loads: str
) -> None:
    outcome = verify(model, "--onnxruntime", f"1.90.0,{version}", "--fail-if-changed")
    assert outcome.code == 1, outcome.err
    assert f"warning: onnxruntime {version}: " in outcome.err
    assert change in outcome.err
    assert f"onnxruntime do not do the same with two.int8.onnx as {onnxruntime.__version__}" in outcome.err
    row = next(line for line in outcome.out.splitlines() if version in line)
    assert loads in row
    assert verify(model, "--onnxruntime", version).code == 0


@pytest.mark.slow
def test_the_gate_on_coverage_holds_in_every_version(verify: Any, model: Path) -> None:
    assert verify(model, "--onnxruntime", "1.90.0", "--min-coverage", "1.0").code == 0
    outcome = verify(model, "--onnxruntime", "1.90.0,1.93.0", "--min-coverage", "50%")
    assert outcome.code == 1
    assert "0.0% of the quantizable nodes run on integers in onnxruntime 1.93.0" in outcome.err


def test_nodes_that_lose_their_kernels_are_named(verify: Any, model: Path) -> None:
    other = verify(model, "--onnxruntime", "1.93.0", "--json").json["versions"][1]
    assert other["became_float"] == ["first", "second"]
    assert other["kernels"] == {}


def test_values_are_compared_on_the_data_that_is_given(verify: Any, model: Path, tmp_path: Path) -> None:
    samples = np.random.default_rng(1).normal(0.0, 2.0, (10, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=samples)
    outcome = verify(model, "--onnxruntime", "1.92.0", "--data", "data.npz", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["compared_on"] == "10 samples of data.npz"
    (expected,) = onnxruntime.InferenceSession(model).run(None, {"x": samples})
    found = outcome.json["versions"][1]["outputs"][0]
    assert found["values"] == 30
    assert found["max_abs_error"] == pytest.approx(float(np.abs(expected).max()) / 2, rel=1e-5)


@pytest.mark.slow
def test_environments_go_at_the_end_unless_they_are_kept(
    verify: Any, model: Path, tmp_path: Path, environments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = tmp_path / "temporary"
    apart.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(apart))
    assert verify(model, "--onnxruntime", "1.90.0", keep=False).code == 0
    assert list(apart.iterdir()) == []
    assert verify(model, "--onnxruntime", "1.90.0").code == 0
    (kept,) = environments.glob("onnxruntime-1.90.0-*")
    made = kept.stat().st_mtime_ns
    # What is there is not installed again.
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    assert verify(model, "--onnxruntime", "1.90.0").code == 0
    assert kept.stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("versions", "problem", "fix"),
    [
        ("1.99.9", "there is no onnxruntime 1.99.9", "take one of 1.92.0, 1.93.0, 1.94.0, 1.95.0"),
        pytest.param(
            *("1.96.0", "onnxruntime 1.96.0 has no wheel for this Python", "--python python3.10"),
            marks=pytest.mark.slow,
        ),
        ("newest", "'newest' is not a version", "1.22.1,1.27.0"),
        (",", "no version of onnxruntime is given", "1.22.1,1.27.0"),
    ],
)
def test_a_version_that_cannot_be_had_is_an_error(
    verify: Any, model: Path, environments: Path, versions: str, problem: str, fix: str
) -> None:
    outcome = verify(model, "--onnxruntime", versions)
    assert outcome.code == 2, outcome.out
    assert problem in outcome.err
    assert fix in outcome.err
    assert not [path for path in environments.iterdir() if versions in path.name or path.name.startswith(".")]


def test_an_index_that_is_not_reached_is_told_from_a_version_that_is_not_there(
    verify: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    # Nothing listens on the port of tcpmux.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    outcome = verify(model, "--onnxruntime", "1.89.0")
    assert outcome.code == 2
    assert "the package index is not reached" in outcome.err


@pytest.mark.parametrize("python", ["/nowhere/python", __file__])
def test_a_python_that_does_not_run_is_an_error(verify: Any, model: Path, python: str) -> None:
    outcome = verify(model, "--onnxruntime", "1.90.0", "--python", python)
    assert outcome.code == 2
    assert f"{python} is not a Python that runs" in outcome.err


@pytest.mark.parametrize(
    "options", [("--fail-if-changed",), ("--data", "x.npz"), ("--python", "python3"), ("--keep-environments", "there")]
)
def test_options_that_have_nothing_to_do_are_refused(run: Any, model: Path, options: tuple[str, ...]) -> None:
    outcome = run("verify", model, *options)
    assert outcome.code == 2
    assert f"{options[0]} belongs to --onnxruntime" in outcome.err


def test_a_model_that_needs_real_inputs_says_so(verify: Any, model: Path) -> None:
    proto = onnx.load(model)
    proto.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, [1]))
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 3), np.float32), "t"))
    proto.graph.node[-1].output[0] = "y0"
    proto.graph.node.append(helper.make_node("Gather", ["t", "i"], ["g"], axis=0))
    proto.graph.node.append(helper.make_node("Add", ["y0", "g"], ["y"]))
    onnx.save(proto, model)
    outcome = verify(model, "--onnxruntime", "1.90.0")
    assert outcome.code == 2
    assert "does not run on random inputs" in outcome.err
    assert "--data" in outcome.err


def test_versions_are_listed_once_each() -> None:
    assert checked_versions(" 1.22.1, 1.27,1.22.1,") == ("1.22.1", "1.27")


def test_the_probe_needs_nothing_but_numpy_and_onnxruntime(model: Path) -> None:
    order = json.dumps({"do": "open", "model": str(model), "level": "ORT_ENABLE_ALL", "threads": 1} | _REST)
    script = f"""
import runpy, sys
runpy.run_path({str(PROBE)!r}, run_name="__main__")
foreign = {{name.partition(".")[0] for name in sys.modules}} & {{"qtool", "onnx", "torch", "onnx_ir"}}
sys.exit(f"imports {{foreign}}" if foreign else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], input=order + "\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"outputs": ["y"]}


@pytest.mark.slow
def test_real_versions_are_installed_and_compared(run: Any, model: Path) -> None:
    outcome = run("verify", model, "--onnxruntime", "1.22.1,1.27", "--rounds", "8", "--json")
    if "is not reached" in outcome.err:
        pytest.skip("no package index is reached from here")
    assert outcome.code == 0, outcome.err
    assert [row["version"] for row in outcome.json["versions"]][1:] == ["1.22.1", "1.27.0"]
    for row in outcome.json["versions"]:
        assert row["problem"] is None
        assert row["integer_nodes"] == 2
