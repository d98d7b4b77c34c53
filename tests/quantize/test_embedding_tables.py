"""Embedding tables that ``qtool quantize`` stores as integers, and ``qtool dequantize`` restores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from tests.closeness import sqnr_db_of

_ROWS, _COLUMNS = 1500, 32
_TIED = """
model (int64[n,t] ids) => (float[n,t,1500] scores)
{
    e = Gather (table, ids)
    h = MatMul (e, w)
    r = Relu (h)
    tt = Transpose <perm = [1,0]> (table)
    scores = MatMul (r, tt)
}
"""
_TWICE = """
model (int64[n,t] ids, int64[n,t] others) => (float[n,t,16] out)
{
    a = Gather (table, ids)
    b = Gather <axis = 0> (table, others)
    s = Add (a, b)
    out = MatMul (s, w)
}
"""


def _table(seed: int = 3) -> np.ndarray:
    table = np.random.default_rng(seed).normal(0, 1, (_ROWS, _COLUMNS)) * np.linspace(0.1, 4.0, _COLUMNS)
    return table.astype(np.float32)


def _weight(columns: int) -> np.ndarray:
    return np.random.default_rng(4).normal(0, 0.2, (_COLUMNS, columns)).astype(np.float32)


@pytest.fixture
def twice(save_model: Any) -> Path:
    """Adds rows of one table, looked up by two inputs, as twice.onnx."""
    path: Path = save_model("twice.onnx", _TWICE, table=_table(), w=_weight(16))
    return path


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    """Twenty-four samples for both inputs, as ids.npz."""
    drawn = np.random.default_rng(5).integers(0, _ROWS, (2, 24, 6))
    np.savez(tmp_path / "ids.npz", ids=drawn[0], others=drawn[1])
    return tmp_path / "ids.npz"


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def _outputs(path: Path, data: Path) -> np.ndarray:
    session = ort.InferenceSession(path)
    arrays = np.load(data)
    return np.asarray(session.run(None, {given.name: arrays[given.name] for given in session.get_inputs()})[0])


@pytest.mark.parametrize("options", [("--effort", "fast"), (), ("--scheme", "dynamic")])
def test_a_table_becomes_integers_with_the_columns_sizes_behind_them(
    run: Any, twice: Path, ids: Path, options: tuple[str, ...]
) -> None:
    outcome = run("quantize", twice, "--calib-data", ids, "-o", "q.onnx", "--json", *options)
    assert outcome.code == 0, outcome.err
    (table,) = outcome.json["tables"]
    assert (table["tensor"], table["shape"]) == ("table", [_ROWS, _COLUMNS])
    assert len(table["nodes"]) == 2
    path = Path("q.onnx").resolve()
    arrays = _arrays(path)
    assert "table" not in arrays
    sizes = np.abs(_table()).max(axis=0)
    np.testing.assert_array_equal(arrays["table_quantized"], np.rint(_table() / sizes.astype(float) * 127))
    np.testing.assert_array_equal(arrays["table_column_sizes"], sizes)
    assert path.stat().st_size < 0.35 * twice.stat().st_size
    assert sqnr_db_of(_outputs(twice, ids), _outputs(path, ids)) > 32.0
    assert outcome.json["outputs"][0]["sqnr_db"] > 32.0


def test_the_noise_of_a_table_is_that_of_its_rows(run: Any, twice: Path, ids: Path) -> None:
    (table,) = run("quantize", twice, "--calib-data", ids, "-o", "q.onnx", "--json").json["tables"]
    wanted = _table().astype(float)
    sizes = np.abs(wanted).max(axis=0)
    noise = np.square(np.rint(wanted / sizes * 127) / 127 * sizes - wanted).sum(axis=1) / np.square(wanted).sum(axis=1)
    assert table["noise_db"] == pytest.approx(-10 * np.log10(noise.mean()), rel=1e-4)


def test_a_table_that_a_layer_reads_too_is_stored_for_both(run: Any, save_model: Any, ids: Path) -> None:
    tied = save_model("tied.onnx", _TIED, table=_table(), w=_weight(_COLUMNS))
    outcome = run("quantize", tied, "--calib-data", ids, "-o", "q.onnx", "--effort", "fast", "--json")
    assert outcome.code == 0, outcome.err
    assert [table["tensor"] for table in outcome.json["tables"]] == ["table"]
    stored = _arrays(Path("q.onnx").resolve())
    assert outcome.json["coverage"]["integer_nodes"] == 2
    assert {array.dtype for array in stored.values() if array.size > _ROWS} == {np.dtype(np.int8)}


def test_rows_far_smaller_than_others_keep_a_table_float(run: Any, save_model: Any, ids: Path) -> None:
    table = _table()
    table[: _ROWS // 2] *= 1e-3
    twice = save_model("twice.onnx", _TWICE, table=table, w=_weight(16))
    outcome = run("quantize", twice, "--calib-data", ids, "-o", "q.onnx", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["tables"] == []
    np.testing.assert_array_equal(_arrays(Path("q.onnx").resolve())["table"], table)


@pytest.mark.parametrize("options", [("--exclude", "Gather"), ("--include", "MatMul"), ("--target", "tensorrt")])
def test_a_table_stays_float_where_a_person_or_the_target_wants_it(
    run: Any, twice: Path, ids: Path, options: tuple[str, ...]
) -> None:
    outcome = run("quantize", twice, "--calib-data", ids, "-o", "q.onnx", "--effort", "fast", "--json", *options)
    assert outcome.code == 0, outcome.err
    assert outcome.json["tables"] == []
    assert _arrays(Path("q.onnx").resolve())["table"].dtype == np.float32


def test_a_goal_that_the_noise_of_a_table_would_miss_keeps_it_float(run: Any, twice: Path, ids: Path) -> None:
    outcome = run("quantize", twice, "--calib-data", ids, "-o", "q.onnx", "--min-sqnr", "36.5", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["tables"] == []
    assert outcome.json["mixed_precision"]["met"]


def test_people_are_told_which_tables_are_integers(run: Any, twice: Path, ids: Path) -> None:
    outcome = run("quantize", twice, "--calib-data", ids, "-o", "q.onnx", "--effort", "fast")
    assert "embedding tables stored as integers: table" in outcome.out + outcome.err


def test_dequantizing_gives_the_one_table_back(run: Any, twice: Path, ids: Path) -> None:
    assert run("quantize", twice, "--calib-data", ids, "-o", "q.onnx", "--effort", "fast").code == 0
    outcome = run("dequantize", "q.onnx", "-o", "f.onnx")
    assert outcome.code == 0, outcome.err
    path = Path("f.onnx").resolve()
    sizes = np.abs(_table()).max(axis=0)
    steps = np.rint(_table() / sizes.astype(float) * 127).astype(np.float32)
    tables = [array for array in _arrays(path).values() if array.shape == (_ROWS, _COLUMNS)]
    assert len(tables) == 1
    np.testing.assert_array_equal(tables[0], steps * np.float32(1 / 127) * sizes)
    assert {node.op_type for node in onnx.load(path).graph.node} == {"Gather", "Add", "MatMul"}
    assert sqnr_db_of(_outputs(twice, ids), _outputs(path, ids)) > 32.0
