"""``qtool finetune`` trains a quantized model and keeps what runs on integers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

from qtool.learn.distillation import Distillation, Judgement
from qtool.workflows.learn.judge import Judge
from tests.conftest import Outcome
from tests.learn.conftest import Network

Run = Callable[..., Outcome]
# Ranges that clip and plain rounding leave something to learn.
_COARSE = ("--effort", "fast", "--method", "percentile", "--percentile", "98", "--no-gptq", "--no-bias-correction")


@pytest.fixture
def quantized(run: Run, network: Network, tmp_path: Path) -> Path:
    path = tmp_path / "network.int8.onnx"
    made = run("quantize", network.model, "--calib-data", network.data, *_COARSE, "-o", path, "--target", "x86-vnni")
    assert made.code == 0, made.err
    return path


def _kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_training_brings_a_coarse_model_nearer_to_float(
    run: Run, network: Network, quantized: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tuned.onnx"
    command = ("finetune", quantized, "--calib-data", network.data, "--steps", "100", "--loss", "mse")
    command = (*command, "--learning-rate", "1", "-o", path)
    found = run(*command, "--json")
    assert found.code == 0, found.err
    assert network.sqnr_db(path) > network.sqnr_db(quantized) + 3
    assert _kinds(path) == _kinds(quantized)
    assert found.json["integer_nodes"] == found.json["quantizable_nodes"] > 0
    losses = [check["loss"] for check in found.json["checks"]]
    kept = next(check for check in found.json["checks"] if check["step"] == found.json["step"])
    assert kept["loss"] == min(losses) < losses[0]
    again = tmp_path / "again.onnx"
    assert run(*command[:-1], again).code == 0
    assert again.read_bytes() == path.read_bytes()


def test_a_killed_run_goes_on_and_writes_the_same_bytes(
    run: Run, network: Network, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        """Nothing in qtool catches it."""

    path, whole = tmp_path / "tuned.onnx", tmp_path / "whole.onnx"
    checkpoint = tmp_path / "tuned.onnx.checkpoint"
    options = ("--calib-data", network.data, "--steps", "80", "--loss", "mse")
    assert run("finetune", quantized, *options, "-o", whole).code == 0
    step, taken = Distillation._step, list[int]()

    def counted(self: Distillation, *arguments: Any) -> float:
        taken.append(1)
        if len(taken) == 60:
            raise KilledError
        return step(self, *arguments)

    monkeypatch.setattr(Distillation, "_step", counted)
    with pytest.raises(KilledError):
        run("finetune", quantized, *options, "-o", path)
    monkeypatch.setattr(Distillation, "_step", step)
    assert checkpoint.exists()
    assert not path.exists()
    other = run("finetune", quantized, *options, "--learning-rate", "2", "-o", path)
    assert other.code == 2
    assert "of another training" in other.err
    found = run("finetune", quantized, *options, "-o", path, "--json")
    assert found.code == 0
    assert [check["step"] for check in found.json["checks"]] == [0, 25, 50, 75, 80]
    assert path.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()


def test_a_checkpoint_that_is_damaged_is_refused(run: Run, network: Network, quantized: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "tuned.onnx.checkpoint"
    checkpoint.write_bytes(b"PK but not really")
    command = ("finetune", quantized, "--calib-data", network.data, "--steps", "1", "-o", tmp_path / "tuned.onnx")
    found = run(*command)
    assert found.code == 2
    assert "cannot be read" in found.err
    assert checkpoint.read_bytes() == b"PK but not really"
    assert run(*command, "--force").code == 0
    assert not checkpoint.exists()


def test_a_locked_run_repeats_a_training(run: Run, network: Network, quantized: Path, tmp_path: Path) -> None:
    path, again = tmp_path / "tuned.onnx", tmp_path / "again.onnx"
    assert run("finetune", quantized, "--calib-data", network.data, "--steps", "20", "-o", path).code == 0
    manifest = tmp_path / "tuned.manifest.json"
    assert run("finetune", "--locked", manifest, "-o", again).code == 0
    assert again.read_bytes() == path.read_bytes()
    refused = run("finetune", "--locked", manifest, "--steps", "30", "--force")
    assert refused.code == 2
    assert "--steps is 30 here, and 20 in the manifest" in refused.err
    wrong = run("quantize", "--locked", manifest, "--force")
    assert wrong.code == 2
    assert "qtool finetune" in wrong.err


def test_what_other_samples_do_not_confirm_is_not_written(
    run: Run, network: Network, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, held = Judge.__call__, list[float]()

    def unlucky(self: Judge, model: ir.Model) -> Judgement:
        """Says of the samples held back, 2 batches of the 24, that they are better before the training."""
        found = judged(self, model)
        if len(self._feeds) == 2:
            held.append(-len(held))
            return replace(found, loss=held[-1])
        return found

    monkeypatch.setattr(Judge, "__call__", unlucky)
    path = tmp_path / "tuned.onnx"
    options = ("--steps", "25", "--loss", "mse", "-o", path, "--json")
    found = run("finetune", quantized, "--calib-data", network.data, *options)
    assert found.json["step"] == 25
    assert not found.json["gained"]
    assert len(held) == 2
    assert network.sqnr_db(path) == network.sqnr_db(quantized)


def test_biases_stay_on_the_scale_of_their_products(
    run: Run, network: Network, quantized: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tuned.onnx"
    assert run("finetune", quantized, "--calib-data", network.data, "--steps", "40", "-o", path).code == 0
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    checked = 0
    for node in graph.node:
        if node.op_type not in {"Conv", "Gemm"} or len(node.input) < 3 or node.input[2] not in makers:
            continue
        scales = [stored[makers[name].input[1]] for name in node.input]
        np.testing.assert_allclose(scales[2], scales[0] * scales[1], rtol=1e-6)
        checked += 1
    assert checked


def test_a_model_that_cannot_gain_stays_what_it_is(run: Run, network: Network, quantized: Path, tmp_path: Path) -> None:
    path = tmp_path / "tuned.onnx"
    options = ("--steps", "20", "--learning-rate", "0", "-o", path)
    assert run("finetune", quantized, "--calib-data", network.data, *options).code == 0
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer}
        for model in (quantized, path)
    )
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_time_that_is_up_ends_the_training(run: Run, network: Network, quantized: Path, tmp_path: Path) -> None:
    options = ("--time-budget", "0", "-o", tmp_path / "tuned.onnx", "--json")
    found = run("finetune", quantized, "--calib-data", network.data, *options)
    assert found.json["ended"] == "the time is up"
    assert [check["step"] for check in found.json["checks"]] == [0, 1]


def test_a_loss_of_ones_own_is_used(run: Run, network: Network, quantized: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def constant(given, wanted):\n    return (given * 0).sum() + 7\n")
    options = ("--loss", "own.py:constant", "--steps", "2", "-o", tmp_path / "tuned.onnx", "--json")
    found = run("finetune", quantized, "--calib-data", network.data, *options)
    assert {check["loss"] for check in found.json["checks"]} == {7.0}


def test_pairs_of_weights_stay_within_16_bits(run: Run, network: Network, tmp_path: Path) -> None:
    quantized, path = tmp_path / "avx2.onnx", tmp_path / "tuned.onnx"
    target = ("--target", "x86-avx2", "-o", quantized)
    assert run("quantize", network.model, "--calib-data", network.data, *_COARSE, *target).code == 0
    options = ("--steps", "60", "--learning-rate", "5", "-o", path)
    assert run("finetune", quantized, "--calib-data", network.data, *options).code == 0
    for tensor in onnx.load(path).graph.initializer:
        weight = numpy_helper.to_array(tensor).astype(np.int32)
        if tensor.data_type == onnx.TensorProto.INT8 and weight.ndim == 2:
            # Gemm with transposed weights: a row is what one output sums up.
            pairs = weight.reshape(len(weight), -1, 2)
            alike = np.sign(pairs[..., 0]) == np.sign(pairs[..., 1])
            assert (np.abs(pairs.sum(-1))[alike] <= 128).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--loss", "other"), "no loss is called other"),
        (("--device", "tpu"), "no device is called tpu"),
        (("--float", "missing.onnx"), "missing.onnx"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    run: Run, network: Network, quantized: Path, options: tuple[str, ...], message: str
) -> None:
    found = run("finetune", quantized, "--calib-data", network.data, *options)
    assert found.code == 2
    assert message in found.err
    assert "Traceback" not in found.err


def test_a_missing_cuda_device_is_told(run: Run, network: Network, quantized: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    found = run("finetune", quantized, "--calib-data", network.data, "--device", "cuda")
    assert found.code == 2
    assert "--device cpu" in found.err


def test_float_models_and_unknown_ones_are_refused(run: Run, network: Network, quantized: Path) -> None:
    found = run("finetune", network.model, "--calib-data", network.data, "--float", network.model, "-o", "out.onnx")
    assert found.code == 2
    assert "no QuantizeLinear" in found.err
    quantized.with_suffix(".manifest.json").unlink()
    found = run("finetune", quantized, "--calib-data", network.data)
    assert found.code == 2
    assert "--float" in found.err
    assert run("finetune", quantized).code == 2


def test_what_exists_is_not_overwritten(run: Run, network: Network, quantized: Path, tmp_path: Path) -> None:
    kept = tmp_path / "network.tuned.onnx"
    kept.write_bytes(b"mine")
    found = run("finetune", quantized, "--calib-data", network.data)
    assert found.code == 2
    assert kept.read_bytes() == b"mine"
    found = run("finetune", quantized, "--calib-data", network.data, "--steps", "1", "--force")
    assert found.code == 0
    manifest = json.loads((tmp_path / "network.tuned.manifest.json").read_text())
    assert manifest["command"] == "finetune"
    assert manifest["options"]["steps"] == 1
    given = manifest["lock"]["arguments"]
    assert given[given.index("--steps") + 1] == "1"
