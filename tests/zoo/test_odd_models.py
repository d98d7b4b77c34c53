"""Every model quantizes: what cannot be quantized stays float, with its reason, and the result runs as before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from qtool.cli.app import app

Read: TypeAlias = Callable[[str], Any]
Feeds: TypeAlias = Callable[[onnx.ModelProto, frozenset[str]], dict[str, np.ndarray]]

NAMES = sorted(path.stem for path in (Path(__file__).parent / "graphs").rglob("*.txt"))


@pytest.mark.parametrize("name", NAMES)
def test_an_odd_model_quantizes(name: str, read: Read, make_data: Feeds, tmp_path: Path) -> None:
    oddity = read(name)
    data = make_data(oddity.model, oddity.left_out)
    report = _quantized(oddity.model, data, tmp_path)
    _compare(tmp_path / "model.onnx", tmp_path / "int8.onnx", data, least_db=oddity.least_db)
    _check_reasons(onnx.load(tmp_path / "int8.onnx"), report)


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("clamped_on_both_sides", {"Conv": 2}),
        ("residual_of_matrices", {"Gemm": 2}),
        ("branch_captures", {"Conv": 2}),
        ("channels_last", {"Conv": 2}),
        ("half", {"Conv": 2}),
        ("half_and_float", {"Conv": 1}),
    ],
)
def test_layers_among_oddities_run_on_integers(
    name: str, operators: dict[str, int], read: Read, make_data: Feeds, tmp_path: Path
) -> None:
    oddity = read(name)
    report = _quantized(oddity.model, make_data(oddity.model, oddity.left_out), tmp_path)
    found = {row["operator"]: row["integer"] for row in report["coverage"]["operators"]}
    assert found.items() >= operators.items()


def test_inputs_without_a_rank(read: Read, make_data: Feeds, tmp_path: Path) -> None:
    oddity = read("several_inputs_and_outputs")
    data = make_data(oddity.model, oddity.left_out)
    for value in (*oddity.model.graph.input, *oddity.model.graph.output):
        value.type.tensor_type.ClearField("shape")
    _quantized(oddity.model, data, tmp_path)
    batches = {name: values[:, None] for name, values in data.items()}
    _compare(tmp_path / "model.onnx", tmp_path / "int8.onnx", batches, least_db=oddity.least_db)


def test_a_dimension_of_minus_one_is_free(read: Read, make_data: Feeds, tmp_path: Path) -> None:
    oddity = read("several_inputs_and_outputs")
    data = make_data(oddity.model, oddity.left_out)
    for value in (*oddity.model.graph.input, *oddity.model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    _quantized(oddity.model, data, tmp_path)
    _compare(tmp_path / "model.onnx", tmp_path / "int8.onnx", data, least_db=oddity.least_db)


def test_weights_in_another_file(read: Read, make_data: Feeds, tmp_path: Path) -> None:
    oddity = read("several_inputs_and_outputs")
    data = make_data(oddity.model, oddity.left_out)
    _quantized(oddity.model, data, tmp_path, external=True)
    _compare(tmp_path / "model.onnx", tmp_path / "int8.onnx", data, least_db=oddity.least_db)


def test_a_model_without_anything_to_quantize_is_said_to_be_float(
    read: Read, make_data: Feeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oddity = read("no_layers")
    onnx.save(oddity.model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **make_data(oddity.model, frozenset()))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["quantize", "model.onnx", "--calib-data", "data.npz"])
    assert result.exit_code == 0, result.output
    assert "nothing in the model can be quantized" in " ".join(result.stderr.split())


def test_missing_states_are_said_to_be_zero(read: Read, make_data: Feeds, tmp_path: Path) -> None:
    oddity = read("states")
    onnx.save(oddity.model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **make_data(oddity.model, oddity.left_out))
    arguments = ["quantize", str(tmp_path / "model.onnx"), "--calib-data", str(tmp_path / "data.npz")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "no array 'state', 'h' in the data: filled with zeros" in " ".join(result.stderr.split())


def test_an_array_under_another_name_is_no_state(read: Read, make_data: Feeds, tmp_path: Path) -> None:
    oddity = read("states")
    onnx.save(oddity.model, tmp_path / "model.onnx")
    data = make_data(oddity.model, frozenset({"h"}))
    np.savez(tmp_path / "data.npz", x=data["x"], stat=data["state"])
    arguments = ["quantize", str(tmp_path / "model.onnx"), "--calib-data", str(tmp_path / "data.npz")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "rename 'stat' to 'state'" in result.stderr


def _quantized(model: onnx.ModelProto, data: dict[str, np.ndarray], folder: Path, *, external: bool = False) -> Any:
    onnx.save(model, folder / "model.onnx", save_as_external_data=external, size_threshold=0)
    np.savez(folder / "data.npz", **data)
    # Small as they are, hardly any of them is faster on integers.
    arguments = ["--calib-data", str(folder / "data.npz"), "-o", str(folder / "int8.onnx"), "--json", "--smallest"]
    arguments += ["--machine-profile", "shipped"]
    result = CliRunner().invoke(app, ["quantize", str(folder / "model.onnx"), *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _compare(float_model: Path, quantized: Path, data: dict[str, np.ndarray], *, least_db: float) -> None:
    """Runs both models on every sample, with zeros for what the data leaves out."""
    sessions = [_session(float_model), _session(quantized)]
    interfaces = [
        [(node.name, node.type) for node in (*session.get_inputs(), *session.get_outputs())] for session in sessions
    ]
    assert interfaces[0] == interfaces[1]
    signal, noise = np.zeros(len(sessions[0].get_outputs())), np.zeros(len(sessions[0].get_outputs()))
    for feed in _feeds(sessions[0], data):
        for place, (one, other) in enumerate(zip(*(session.run(None, feed) for session in sessions), strict=True)):
            assert one.shape == other.shape
            if one.dtype.kind == "f":
                signal[place] += np.square(one.astype(np.float64)).sum()
                noise[place] += np.square(one.astype(np.float64) - other).sum()
            else:
                assert (one == other).all()
    assert (10 * np.log10((signal + 1e-12) / (noise + 1e-12)) >= least_db)[signal > 0].all()


def _feeds(session: ort.InferenceSession, data: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for row in range(len(next(iter(data.values())))):
        feed = {}
        for node in session.get_inputs():
            if node.name not in data:
                feed[node.name] = np.zeros([dim if isinstance(dim, int) else 1 for dim in node.shape], np.float32)
                continue
            value = np.asarray(data[node.name][row])
            feed[node.name] = value[None] if value.ndim == len(node.shape) - 1 else value
        yield feed


def _check_reasons(model: onnx.ModelProto, report: Any) -> None:
    reasons = {node["node"]: node["reason"] for node in report["float_nodes"]}
    assert all(node["reason"] for node in report["coverage"]["misses"])
    for node, dequantized in _layers(model.graph):
        assert dequantized or reasons.get(node.name), f"{node.op_type} {node.name} is float without a reason"


def _layers(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """Yields every Conv, Gemm and MatMul, in subgraphs too, and whether both factors are dequantized."""
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.domain == "":
            yield node, all(name in dequantized for name in node.input[:2])
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _layers(attribute.g)


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
