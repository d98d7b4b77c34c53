"""``qtool optimize`` and ``qtool passes`` as a person types them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qtool.passes.registry import PASSES, Runs


@pytest.fixture
def folded(graph: Callable[[str], onnx.ModelProto], tmp_path: Path) -> Path:
    """A model whose BatchNormalization can be folded into its Conv."""
    path = tmp_path / "net.onnx"
    onnx.save(graph("conv-batchnorm"), path)
    return path


def _nodes(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node if node.op_type != "Constant"]


def test_the_result_has_fewer_nodes_and_the_same_outputs(run: Any, folded: Path, outputs: Any) -> None:
    outcome = run("optimize", folded, "-o", "small.onnx", "--json")
    assert outcome.code == 0, outcome.err
    report = outcome.json
    assert report["nodes_before"] == len(_nodes(folded))
    assert report["nodes_after"] == len(_nodes(Path("small.onnx"))) < report["nodes_before"]
    assert report["bytes_after"] == Path("small.onnx").stat().st_size
    expected, found = outputs(onnx.load(folded)), outputs(onnx.load("small.onnx"))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5 * np.abs(values).max())
    assert set(report["largest_difference"]) == set(expected)
    assert max(report["largest_difference"].values()) < 1e-5


def test_each_step_says_what_it_changed(run: Any, folded: Path) -> None:
    report = run("optimize", folded, "--dry-run", "--json").json
    assert report["output"] is None
    assert report["passes"]
    nodes = report["nodes_before"]
    for step in report["passes"]:
        assert step["before"] == nodes
        assert step["after"] - step["before"] == sum(step["operators"].values())
        nodes = step["after"]
    assert nodes == report["nodes_after"]
    changes: dict[str, int] = {}
    for step in report["passes"]:
        for operator, change in step["operators"].items():
            changes[operator] = changes.get(operator, 0) + change
    for operator, change in changes.items():
        before, after = (report[f"operators_{when}"].get(operator, 0) for when in ("before", "after"))
        assert after - before == change


def test_a_dry_run_writes_nothing(run: Any, folded: Path) -> None:
    before = sorted(path.name for path in Path().iterdir())
    outcome = run("optimize", folded, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "fold-affine" in outcome.out
    assert "nothing was written" in outcome.out
    assert sorted(path.name for path in Path().iterdir()) == before


def test_passes_are_chosen_by_name(run: Any, folded: Path) -> None:
    with_all = run("optimize", folded, "--dry-run", "--json").json
    skipped = run("optimize", folded, "--dry-run", "--json", "--skip", "fold-affine").json
    assert "fold-affine" in [step["name"] for step in with_all["passes"]]
    assert "fold-affine" not in [step["name"] for step in skipped["passes"]]
    assert skipped["operators_after"]["BatchNormalization"] == 1
    alone = run("optimize", folded, "--dry-run", "--json", "--passes", "lift-constants", "--passes", "fold-affine").json
    assert {step["name"] for step in alone["passes"]} <= {"lift-constants", "fold-affine"}
    assert "BatchNormalization" not in alone["operators_after"]
    integers = run("optimize", folded, "--dry-run", "--json", "--passes", "integers")
    assert integers.code == 0, integers.err
    wanted = {name for name, entry in PASSES.items() if entry.runs is Runs.FOR_INTEGERS}
    assert {step["name"] for step in integers.json["passes"]} <= wanted
    both = run("optimize", folded, "--dry-run", "--json", "--passes", "default", "--passes", "fold-affine").json
    assert both == with_all


def test_real_data_is_used_for_the_comparison(run: Any, folded: Path) -> None:
    shape = [dim.dim_value or 3 for dim in onnx.load(folded).graph.input[0].type.tensor_type.shape.dim]
    name = onnx.load(folded).graph.input[0].name
    samples = np.random.default_rng(5).normal(size=(20 * shape[0], *shape[1:])).astype(np.float32)
    np.savez("data.npz", **{name: samples})
    report = run("optimize", folded, "-o", "small.onnx", "--data", "data.npz", "--limit", 5, "--json")
    assert report.code == 0, report.err
    assert report.json["compared_on"].endswith("of data.npz")


def test_the_result_is_named_after_the_model_and_replaces_nothing(run: Any, folded: Path) -> None:
    assert run("optimize", folded).code == 0
    assert Path("net.optimized.onnx").exists()
    again = run("optimize", folded)
    assert again.code == 2
    assert "--force" in again.err
    assert run("optimize", folded, "--force").code == 0
    itself = run("optimize", folded, "-o", folded, "--force")
    assert itself.code == 2
    assert "the output is the input" in itself.err


def test_a_result_that_computes_something_else_is_not_written_and_the_pass_is_named(run: Any, folded: Path) -> None:
    outcome = run("optimize", folded, "-o", "small.onnx", "--tolerance", "0")
    assert outcome.code == 2
    assert "the pass fold-affine changes output" in outcome.err
    assert "--skip fold-affine" in outcome.err
    assert not Path("small.onnx").exists()
    allowed = run("optimize", folded, "-o", "small.onnx", "--tolerance", "0", "--skip", "fold-affine")
    assert allowed.code == 0, allowed.err


def test_without_the_check_a_warning_says_so(run: Any, folded: Path) -> None:
    outcome = run("optimize", folded, "-o", "small.onnx", "--no-check", "--quiet")
    assert outcome.code == 0
    assert "the outputs were not compared" in outcome.err
    wrong = run("optimize", folded, "-o", "other.onnx", "--no-check", "--tolerance", "1")
    assert wrong.code == 2


@pytest.mark.parametrize(
    ("arguments", "problem", "fix"),
    [
        (("--skip", "fold-afine"), "--skip: there is no pass 'fold-afine'", "did you mean 'fold-affine'?"),
        (("--passes", "identity"), "--passes: there is no pass 'identity'", "see `qtool passes`"),
        (("--passes", "fold-affine", "--skip", "fold-affine"), "no pass is left to run", "name fewer with --skip"),
        (("--target", "x87"), "there is no target 'x87'", "did you mean 'x86'?"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(
    run: Any, folded: Path, arguments: tuple[str, ...], problem: str, fix: str
) -> None:
    outcome = run("optimize", folded, "--dry-run", *arguments)
    assert outcome.code == 2
    assert problem in outcome.err
    assert fix in outcome.err


def test_defaults_that_callers_may_override_stay_inputs(
    run: Any, graph: Callable[[str], onnx.ModelProto], outputs: Any
) -> None:
    model = graph("initializers-as-inputs")
    onnx.save(model, "net.onnx")
    assert run("optimize", "net.onnx", "-o", "small.onnx").code == 0
    small = onnx.load("small.onnx")
    assert [value.name for value in small.graph.input] == [value.name for value in model.graph.input]
    assert {tensor.name for tensor in small.graph.initializer} == {tensor.name for tensor in model.graph.initializer}
    assert _nodes(Path("small.onnx")) == ["Conv", "Mul"]


def test_the_passes_are_listed_in_their_order(run: Any) -> None:
    found = run("passes", "--json").json["passes"]
    assert [entry["name"] for entry in found] == list(PASSES)
    shown = run("passes").out
    for name, entry in PASSES.items():
        assert any(name in line and entry.effect in line for line in shown.splitlines())


def test_operators_of_other_runtimes_need_no_check(run: Any) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "my.ops" : 1]> g (float[N,3] x) => (float[N,3] y) {
        a = Identity (x) b = my.ops.Anything (a) c = my.ops.Anything (a) d = Add (b, c) y = Identity (d) }"""
    onnx.save(onnx.parser.parse_model(text), "net.onnx")
    checked = run("optimize", "net.onnx", "-o", "small.onnx")
    assert checked.code == 2
    assert "onnxruntime does not load net.onnx" in checked.err
    assert run("optimize", "net.onnx", "-o", "small.onnx", "--no-check").code == 0
    # Nobody knows whether what is foreign returns the same twice.
    assert _nodes(Path("small.onnx")) == ["Anything", "Anything", "Add"]


def test_a_pass_that_fails_is_named(run: Any, folded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("unheard of")

    monkeypatch.setattr("qtool.passes.optimization.unroll_loops.UnrollLoops.call", fail)
    outcome = run("optimize", folded, "-o", "small.onnx")
    assert outcome.code == 2
    assert "the pass unroll-loops fails on this model" in outcome.err
    assert "--skip unroll-loops" in outcome.err
    assert run("optimize", folded, "-o", "small.onnx", "--skip", "unroll-loops").code == 0


def test_constants_that_old_formats_list_as_inputs_are_none(run: Any, graph: Callable[[str], onnx.ModelProto]) -> None:
    model = graph("conv-batchnorm")
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, "old.onnx")
    outcome = run("optimize", "old.onnx", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    assert [value.name for value in onnx.load("small.onnx").graph.input] == ["x"]
    assert _nodes(Path("small.onnx")) == ["Conv", "Relu"]


def test_a_model_that_any_rounding_moves_is_judged_by_that(run: Any) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,64] x) => (float[N,1] y)
        <float[64,64] w, float[64] b, float[64,1] v, float steep = {200000.0}> {
        a = MatMul (x, w) c = Add (a, b) d = MatMul (c, v) e = Mul (d, steep) y = Sin (e) }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(2)
    for declared in model.graph.value_info:
        dims = [dim.dim_value for dim in declared.type.tensor_type.shape.dim]
        values = rng.normal(size=dims).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, declared.name))
    del model.graph.value_info[:]
    onnx.save(model, "steep.onnx")
    np.savez("data.npz", x=rng.normal(size=(8, 64)).astype(np.float32))
    # Weights that hold the large factor themselves would be rounded after it.
    usual = ("--data", "data.npz", "--skip", "fold-scales-back")
    report = run("optimize", "steep.onnx", "-o", "small.onnx", *usual, "--json")
    assert report.code == 0, report.err
    difference = max(report.json["largest_difference"].values())
    assert difference <= 1e-5 or difference <= 5 * report.json["noise"]
    strict = run("optimize", "steep.onnx", "-o", "strict.onnx", *usual, "--tolerance", difference / 2)
    assert (strict.code == 2) == (difference > 0)
