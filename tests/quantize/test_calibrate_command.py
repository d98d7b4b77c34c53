"""``qtool calibrate``: what it sees, says and keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool.calib.statistics_file import read_statistics


def test_every_tensor_has_its_exact_extremes(run: Any, model: Path, data: Path) -> None:
    outcome = run("calibrate", model, "--calib-data", data, "--json")
    assert outcome.code == 0, outcome.err
    seen = {entry["tensor"]: entry for entry in outcome.json["tensors"]}
    images = np.load(data)["image"]
    assert seen["image"]["minimum"] == float(images.min())
    assert seen["image"]["maximum"] == float(images.max())
    assert seen["image"]["values"] == images.size
    assert outcome.json["samples"] == 40
    assert outcome.json["batches"] == 10
    assert outcome.json["unreached"] == []
    assert Path(outcome.json["output"]).name == "net.stats.npz"


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_the_batch_size_changes_no_extreme(run: Any, model: Path, data: Path, batch_size: int) -> None:
    usual = run("calibrate", model, "--calib-data", data, "-o", "few.npz", "--json").json
    many = run("calibrate", model, "--calib-data", data, "--batch-size", batch_size, "-o", "many.npz", "--json").json
    assert many["batches"] == -(-40 // batch_size)
    for before, after in zip(usual["tensors"], many["tensors"], strict=True):
        assert after["values"] == before["values"]
        assert after["minimum"] == pytest.approx(before["minimum"], abs=1e-5)
        assert after["maximum"] == pytest.approx(before["maximum"], abs=1e-5)


def test_the_histogram_counts_every_value_when_asked_to(run: Any, model: Path, data: Path) -> None:
    assert run("calibrate", model, "--calib-data", data, "--exact", "-o", "exact.npz").code == 0
    statistics = read_statistics(Path("exact.npz")).collected.statistics
    assert all(int(seen.counts.sum()) == seen.values for seen in statistics.values())


def test_a_tensor_that_was_never_reached_is_named(run: Any, save_model: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    path = save_model(
        "empty.onnx",
        """empty (float[n,8] x) => (float[n,4] out, float[k,4] rest)
        {
            out = MatMul (x, w)
            e = Slice (x, begin, begin)
            t = Tanh (e)
            rest = MatMul (t, w)
        }""",
        w=generator.normal(0, 1, (8, 4)).astype(np.float32),
        begin=np.zeros(1, np.int64),
    )
    np.savez(tmp_path / "d.npz", x=generator.normal(0, 1, (20, 8)).astype(np.float32))
    outcome = run("calibrate", path, "--calib-data", "d.npz")
    assert outcome.code == 0, outcome.err
    assert "warning: the tensor 't' was never reached" in outcome.err
    quantized = run("quantize", path, "--calib-data", "d.npz", "--json")
    assert quantized.code == 0, quantized.err
    reasons = {entry["node"]: entry["reason"] for entry in quantized.json["float_nodes"]}
    assert reasons["/rest/MatMul"] == "'t' was not reached by the data"


def test_a_limit_uses_the_first_samples_only(run: Any, model: Path, data: Path) -> None:
    outcome = run("calibrate", model, "--calib-data", data, "--limit", "12", "--json")
    assert outcome.json["samples"] == 12


def test_a_function_may_yield_the_data(
    run: Any, model: Path, tmp_path: Path, make_images: Callable[..., np.ndarray]
) -> None:
    np.save(tmp_path / "images.npy", make_images(10))
    (tmp_path / "feeds.py").write_text(
        "import numpy as np\n"
        "def feeds():\n"
        "    for image in np.load('images.npy'):\n"
        "        yield {'image': image[None]}\n"
    )
    outcome = run("calibrate", model, "--calib-data", "feeds.py:feeds", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["samples"] == 10


def test_two_passes_write_the_same_bytes(run: Any, model: Path, data: Path) -> None:
    written = []
    for name in ("a.npz", "b.npz"):
        assert run("calibrate", model, "--calib-data", data, "-o", name).code == 0
        written.append(Path(name).read_bytes())
    assert written[0] == written[1]


def test_no_data_is_an_error(run: Any, model: Path) -> None:
    outcome = run("calibrate", model)
    assert outcome.code == 2
    assert "no calibration data is given" in outcome.err
