"""The Python API does what the commands do."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import onnx
import pytest

import qtool

_NET = "net (float[n, 16] x) => (float[n, 8] y) { h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v) }"
_FUNCTIONS = ("convert", "dequantize", "merge_lora", "quantize", "quantize_dynamic", "quantize_weights", "report")


@pytest.fixture
def model(save: Callable[..., Path], tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(32, 16)).astype(np.float32))
    weights = {"w": rng.normal(size=(16, 32)), "v": rng.normal(size=(32, 8))}
    return save("net.onnx", _NET, **{name: array.astype(np.float32) for name, array in weights.items()})


def _typed(root: Path) -> set[str]:
    """The names that the package gives to type checkers."""
    module = ast.parse((root / "qtool" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in module.body if isinstance(node, ast.If)]
    imported = {alias.asname or "" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assigned = {ast.unparse(target) for node in block.body if isinstance(node, ast.Assign) for target in node.targets}
    return {name for name in imported | assigned if not name.startswith("_")}


def test_what_type_checkers_see_is_what_there_is(root: Path) -> None:
    names = _typed(root)
    assert set(_FUNCTIONS) < names
    assert names == {name for name in dir(qtool) if name in qtool._HOMES}
    for name in names:
        assert inspect.getdoc(getattr(qtool, name)), name


def test_no_module_takes_the_place_of_a_function(root: Path) -> None:
    for name in _typed(root):
        assert not (root / "qtool" / name).exists(), name
        assert not (root / "qtool" / f"{name}.py").exists(), name


def test_a_name_that_is_not_there_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="'qtool' has no attribute 'quantise'"):
        _ = qtool.quantise  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_a_call_takes_a_request_and_may_be_silent(name: str) -> None:
    request, progress, *others = inspect.signature(getattr(qtool, name)).parameters.values()
    assert request.default is inspect.Parameter.empty
    assert progress.name == "progress"
    for optional in (progress, *others):
        assert optional.default is not inspect.Parameter.empty


def test_a_call_makes_what_the_command_makes(model: Path, tmp_path: Path, run: Callable[..., object]) -> None:
    report = qtool.quantize(
        qtool.QuantizeRequest(
            source=qtool.ModelSource(path=model),
            data=qtool.DataRequest(source=str(tmp_path / "data.npz")),
            timing=qtool.Timing(for_size=True),
            output=tmp_path / "called.onnx",
        )
    )
    run("quantize", model, "--calib-data", "data.npz", "--smallest", "-o", "commanded.onnx", as_given=True)
    assert report.output == tmp_path / "called.onnx"
    assert report.output.read_bytes() == (tmp_path / "commanded.onnx").read_bytes()


def test_a_dynamic_call_makes_what_the_command_makes(
    model: Path, tmp_path: Path, run: Callable[..., object], capfd: pytest.CaptureFixture[str]
) -> None:
    request = qtool.DynamicRequest(source=qtool.ModelSource(path=model), output=tmp_path / "called.onnx")
    report = qtool.quantize_dynamic(request)
    assert capfd.readouterr() == ("", "")
    run("quantize", model, "--scheme", "dynamic", "-o", "commanded.onnx")
    assert report.output.read_bytes() == (tmp_path / "commanded.onnx").read_bytes()


def test_a_call_for_weights_alone_makes_what_the_command_makes(
    model: Path, tmp_path: Path, run: Callable[..., object]
) -> None:
    request = qtool.WeightOnlyRequest(source=qtool.ModelSource(path=model), output=tmp_path / "called.onnx")
    report = qtool.quantize_weights(request)
    run("quantize", model, "--scheme", "weights", "-o", "commanded.onnx")
    assert report.output.read_bytes() == (tmp_path / "commanded.onnx").read_bytes()


def test_what_was_quantized_is_turned_back(model: Path, tmp_path: Path) -> None:
    quantized = qtool.quantize_dynamic(qtool.DynamicRequest(source=qtool.ModelSource(path=model)))
    report = qtool.dequantize(qtool.DequantizeRequest(model=quantized.output, output=tmp_path / "float.onnx"))
    operators = {node.op_type for node in onnx.load(report.output).graph.node}
    assert operators == {"MatMul", "Relu"}


def test_an_error_says_the_fix(model: Path) -> None:
    with pytest.raises(qtool.QtoolError) as caught:
        qtool.quantize(qtool.QuantizeRequest(source=qtool.ModelSource(path=model)))
    assert caught.value.problem
    assert caught.value.fix


def test_the_guide_names_all_and_shows_the_sample(root: Path) -> None:
    page = (root / "docs" / "guides" / "python.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert textwrap.indent(shown, "    ") in (root / "samples" / "03_python_api.py").read_text(encoding="utf-8")
    assert not {name for name in _typed(root) if f"`{name}`" not in page and f"qtool.{name}" not in page}


@pytest.mark.slow
def test_the_sample_reaches_its_gates(clone: Path, python: Callable[..., CompletedProcess[str]]) -> None:
    result = python("samples/03_python_api.py", "made")
    assert result.returncode == 0, result.stderr
    said = dict(line.split(": ") for line in result.stdout.splitlines())
    assert {path.suffixes[-1] for path in (clone / "made").glob("from_python*")} == {".onnx", ".json"}
    assert float(said["top1_float"]) > 98
    assert float(said["size_ratio"]) < 0.4
    assert said["top1_drop > 0.3"] == "passed"
    assert said["size_ratio > 0.4"] == "passed"
