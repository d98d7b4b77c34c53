"""A model whose sums can overflow on the processor at hand is never shown without a word about it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool.workflows.diagnose import overflow

_NET = """g (float[n,16] x) => (float[n,4] y) {
    h = MatMul (x, w1)
    r = Relu (h)
    y = MatMul (r, w2)
}"""


@pytest.fixture
def saturating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this processor one whose sums have 16 bits, as far as warnings go."""
    monkeypatch.setattr(overflow, "sums_saturate", lambda: True)


@pytest.fixture
def models(run: Any, save: Any, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A float model, one that is quantized for VNNI, and one for every x86."""
    generator = np.random.default_rng(0)
    # Two weights of the largest size side by side, so that they overflow for sure.
    w1 = generator.normal(0, 0.2, (16, 8)).astype(np.float32)
    w1[:2] = 1.0
    w2 = generator.normal(0, 0.2, (8, 4)).astype(np.float32)
    w2[:2] = 1.0
    path = save("net.onnx", _NET, w1=w1, w2=w2)
    np.savez(tmp_path / "data.npz", x=generator.normal(0, 1, (32, 16)).astype(np.float32))
    outputs = []
    for target in ("x86-vnni", "x86"):
        output = tmp_path / f"{target}.onnx"
        outcome = run("quantize", path, "--calib-data", "data.npz", "--target", target, "-o", output)
        assert outcome.code == 0, outcome.err
        outputs.append(output)
    return (path, *outputs)


@pytest.mark.usefixtures("saturating")
def test_a_report_says_it_before_any_figure(run: Any, models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, vnni, _ = models
    outcome = run(
        "report", path, vnni, "--data", "data.npz", "--no-latency", "-o", "page.html", "--markdown", "page.md"
    )
    assert outcome.code == 0, outcome.err
    assert "warning: x86-vnni.onnx: the integer sums of 2 layers can overflow on this processor" in outcome.err
    assert "n_h, n_y" in outcome.err
    assert "--target auto" in outcome.err
    for text in (outcome.out, (tmp_path / "page.md").read_text("utf-8"), (tmp_path / "page.html").read_text("utf-8")):
        words = " ".join(text.split())
        assert words.index("Integer sums can overflow on this processor") < words.index("SQNR")


@pytest.mark.usefixtures("saturating")
def test_a_gate_fails_whatever_its_figure_is(run: Any, models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, vnni, fleet = models
    given = ("--data", "data.npz", "--no-latency", "--fail-if", "sqnr_db < 0", "--quiet")
    failed = run("report", path, vnni, *given, "--junit", "result.xml", "--json")
    assert failed.code == 1
    assert "can overflow on this processor" in failed.err
    assert failed.json["quantized_models"][0]["overflowing_layers"] == ["n_h", "n_y"]
    outcomes = {verdict["condition"]: verdict["outcome"] for verdict in failed.json["verdicts"]}
    assert outcomes == {"sqnr_db < 0": "passed", "integer sums hold": "failed"}
    assert len(ET.parse(tmp_path / "result.xml").getroot().findall(".//failure")) == 1
    passed = run("report", path, fleet, *given)
    assert (passed.code, passed.err) == (0, "")


@pytest.mark.usefixtures("saturating")
def test_verify_warns_and_fails_its_gate(run: Any, models: tuple[Path, Path, Path]) -> None:
    _, vnni, fleet = models
    plain = run("verify", vnni)
    assert plain.code == 0
    assert "can overflow" in plain.err
    assert run("verify", vnni, "--json", "--quiet").json["overflowing_layers"] == ["n_h", "n_y"]
    gated = run("verify", vnni, "--min-coverage", "10%")
    assert gated.code == 1
    assert "error: x86-vnni.onnx: the integer sums of 2 layers can overflow" in gated.err
    assert run("verify", fleet, "--min-coverage", "10%").code == 0


@pytest.mark.usefixtures("saturating")
@pytest.mark.parametrize(
    "command",
    [
        ("optimize", "-o", "out.onnx"),
        ("convert", "--opset", "18", "-o", "out.onnx"),
        ("explain", "n_h"),
        ("split", "--at", "r", "-o", "parts"),
    ],
)
def test_every_command_that_runs_it_warns(run: Any, models: tuple[Path, Path, Path], command: tuple[str, ...]) -> None:
    _, vnni, fleet = models
    warned = run(command[0], vnni, *command[1:], "--quiet")
    assert warned.code == 0, warned.err
    assert "can overflow on this processor" in warned.err
    silent = run(command[0], fleet, *command[1:], "--quiet", *(() if command[0] == "explain" else ("--force",)))
    assert silent.code == 0, silent.err
    assert "overflow" not in silent.err


def test_sums_of_32_bits_are_no_matter(run: Any, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "sums_saturate", lambda: False)
    path, vnni, _ = models
    outcome = run("report", path, vnni, "--data", "data.npz", "--no-latency", "--fail-if", "sqnr_db < 0", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["quantized_models"][0]["overflowing_layers"] == []


@pytest.mark.usefixtures("saturating")
def test_layers_that_run_in_float_cannot_overflow(run: Any, save: Any, tmp_path: Path) -> None:
    # Without a QuantizeLinear behind it, onnxruntime has no integer kernel for a convolution.
    model = save(
        "half.onnx",
        """g (float[n,2] x) => (float[n,1] y) {
            q = QuantizeLinear (x, one, zero)
            d = DequantizeLinear (q, one, zero)
            w = DequantizeLinear (wq, one)
            image = Unsqueeze (d, axes)
            h = Conv (image, w)
            y = Squeeze (h, axes)
        }""",
        one=np.float32(1),
        zero=np.uint8(0),
        wq=np.full((1, 2, 1), 127, np.int8),
        axes=np.array([2], np.int64),
    )
    assert overflow.overflowing_layers_in(model) == ()
