"""What options take is what the registries hold: a new entry is a choice without another line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from qtool.backends.targets import AUTO, PRESETS
from qtool.calib.image_layout import Layout
from qtool.calib.ranges import RANGE_METHODS, RANGE_PARAMETERS, range_method, range_method_class
from qtool.cli.app import app
from qtool.lora.merge.combining import Method
from qtool.metrics.task import METRICS
from qtool.passes.registry import PASSES
from qtool.qdq.scale_policy import ScalePolicy
from qtool.reporting.writers import WRITERS
from qtool.workflows.convert.target_format import TargetFormat
from qtool.workflows.tune.efforts import Effort

_WIDE_METHOD = """
from dataclasses import dataclass

from qtool.calib.affine import Range


@dataclass(frozen=True, slots=True)
class Wide:
    factor: float = 2.0

    def span(self, statistics, grid):
        return Range(statistics.minimum * self.factor, statistics.maximum * self.factor)
"""
_RUN_WITH_WIDE = """
from qtool.calib.ranges import RANGE_METHODS, RANGE_PARAMETERS, RangeParameter

RANGE_METHODS["wide"] = "wide_method:Wide"
RANGE_PARAMETERS["wide"] = RangeParameter(option="wide-factor", field="factor", meaning="times wider", default=2.0)

from typer.testing import CliRunner

from qtool.cli.app import app

COMMON = "quantize net.onnx --calib-data calib.npz --effort fast --smallest --machine-profile shipped".split()
for name, options, code in (
    ("plain", "--method minmax", 0),
    ("wide", "--method wide", 0),
    ("wider", "--method wide --wide-factor 3", 0),
    ("refused", "--method minmax --wide-factor 3", 2),
):
    result = CliRunner().invoke(app, [*COMMON, "-o", name + ".onnx", *options.split()])
    assert result.exit_code == code, result.output
print(result.stderr)
"""


def _text(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def _hint(command: str, name: str) -> Any:
    (function,) = [info.callback for info in app.registered_commands if info.callback.__name__ == command]
    hint = get_type_hints(function)[name]
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next(kind for kind in kinds if kind is not type(None))


def _completed(words: str) -> list[str]:
    surroundings = {"_QTOOL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    return CliRunner().invoke(app, [], prog_name="qtool", env=surroundings).stdout.split()


@pytest.mark.parametrize(
    ("command", "name", "home"),
    [
        ("quantize", "effort", Effort),
        ("convert", "to", TargetFormat),
        ("merge_lora", "combine", Method),
        ("merge_lora", "scales", ScalePolicy),
        ("optimize", "io_layout", Layout),
    ],
)
def test_choices_are_those_of_the_workflows(command: str, name: str, home: Any) -> None:
    assert _hint(command, name) == home


@pytest.mark.parametrize("target", TargetFormat)
def test_every_format_to_convert_to_is_a_choice_with_a_writer(target: TargetFormat) -> None:
    assert f"<{'|'.join(TargetFormat)}>" in _text("convert", "--help").replace(" ", "")
    writer = target.load()
    assert writer.holds in ("graph", "weights", "program")
    assert writer.suffix.startswith(".")


@pytest.mark.parametrize("command", ["quantize", "sensitivity"])
def test_every_range_method_is_a_choice(command: str) -> None:
    assert ", ".join(("auto", *RANGE_METHODS)) in _text(command, "--help")


@pytest.mark.parametrize("method", RANGE_PARAMETERS)
def test_a_parameter_of_a_range_method_is_an_option_with_its_default(method: str) -> None:
    parameter = RANGE_PARAMETERS[method]
    shown = _text("quantize", "--help-all")
    assert f"--{parameter.option} N {method}: {parameter.meaning}. Default: {parameter.default:g}." in shown
    (field,) = [field for field in fields(range_method_class(method)) if field.name == parameter.field]
    for made in (range_method(method), range_method(method, parameter.default)):
        assert getattr(made, parameter.field) == pytest.approx(field.default, rel=1e-12)


@pytest.mark.parametrize(("command", "value"), [("quantize", "median"), ("sensitivity", "")])
def test_an_unknown_range_method_is_refused_with_the_choices(command: str, value: str) -> None:
    result = CliRunner().invoke(app, [command, "model.onnx", "--method", value])
    assert result.exit_code == 2
    assert f"value for '--method': '{value}' is not one of 'auto', " in result.stderr
    assert all(f"'{name}'" in result.stderr for name in RANGE_METHODS)


def test_an_unknown_range_method_in_the_settings_is_refused_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "qtool.toml").write_text('[quantize]\nmethod = "median"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["quantize", "model.onnx"])
    assert result.exit_code == 2
    assert "'median' is not one of" in result.stderr
    assert "settings file" in result.stderr


@pytest.mark.slow
def test_a_new_range_method_needs_its_file_and_its_entries_alone(save: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "wide_method.py").write_text(_WIDE_METHOD, encoding="utf-8")
    (tmp_path / "run.py").write_text(_RUN_WITH_WIDE, encoding="utf-8")
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(8, 4)).astype(np.float32)
    save("net.onnx", "g (float[n,8] x) => (float[n,4] y) { y = MatMul (x, w) }", w=weights)
    np.savez(tmp_path / "calib.npz", x=rng.uniform(-1, 1, (32, 8)).astype(np.float32))
    result = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert result.returncode == 0, result.stderr
    assert "--wide-factor has no effect with --method minmax" in result.stdout
    plain, wide, wider = (_input_scale(tmp_path / f"{name}.onnx") for name in ("plain", "wide", "wider"))
    assert (wide / plain, wider / plain) == (pytest.approx(2, rel=1e-5), pytest.approx(3, rel=1e-5))


def _input_scale(path: Path) -> float:
    graph = onnx.load(path).graph
    (name,) = [node.input[1] for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x"]
    (scale,) = [tensor for tensor in graph.initializer if tensor.name == name]
    return float(numpy_helper.to_array(scale))


def test_every_metric_is_named() -> None:
    named = _text("report", "--help").partition("--metric NAME Judge by ")[2].partition(" or pkg.module:function")[0]
    assert set(named.replace(",", "").split()) == set(METRICS)


def test_a_report_is_written_in_every_form_that_there_is() -> None:
    result = CliRunner().invoke(app, ["report", "a.onnx", "b.onnx", "--data", "d.npz", "-o", "report.txt"])
    assert result.exit_code == 2
    assert ", ".join(WRITERS) in result.stderr


def test_values_are_completed_from_the_registries() -> None:
    assert _completed("qtool quantize --method m") == [name for name in ("auto", *RANGE_METHODS) if name[0] == "m"]
    assert _completed("qtool quantize --target x") == [name for name in (AUTO, *PRESETS) if name[0] == "x"]
    assert _completed("qtool optimize --skip fold") == [name for name in PASSES if name.startswith("fold")]
