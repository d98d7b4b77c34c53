"""What ``qtool quantize`` and ``qtool calibrate`` say to what cannot work: two lines, exit code 2, nothing written."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qtool.calib.collect
import qtool.formats.onnx.onnx_file


def _listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _refused(outcome: Any, problem: str, fix: str) -> None:
    assert outcome.code == 2, (outcome.code, outcome.err)
    lines = [line for line in outcome.err.splitlines() if line.startswith(("error: ", "  fix: "))]
    assert len(lines) == 2, outcome.err
    assert problem in lines[0]
    assert fix in lines[1]
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


def test_a_missing_model(run: Any, data: Path) -> None:
    _refused(run("quantize", "none.onnx", "--calib-data", data), "none.onnx", "")


def test_no_model_at_all(run: Any) -> None:
    _refused(run("quantize"), "no model is given", "qtool.toml")


@pytest.mark.parametrize("content", [b"", b"just some text\n"])
def test_a_file_that_is_no_model(run: Any, tmp_path: Path, data: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    before = _listing(tmp_path)
    _refused(run("quantize", "bad.onnx", "--calib-data", data), "bad.onnx", "")
    assert _listing(tmp_path) == before


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_model(run: Any, model: Path, data: Path, share: float) -> None:
    whole = model.read_bytes()
    model.write_bytes(whole[: int(len(whole) * share)])
    _refused(run("quantize", model, "--calib-data", data), "net.onnx", "")


def test_neither_data_nor_statistics(run: Any, model: Path) -> None:
    _refused(run("quantize", model), "no calibration data", "--calib-data")


def test_missing_data(run: Any, model: Path, data: Path) -> None:
    _refused(run("quantize", model, "--calib-data", "calip.npz"), "no data at calip.npz", "did you mean calib.npz")


@pytest.mark.parametrize(
    ("arrays", "problem", "fix"),
    [
        ({"imaeg": (20, 3, 16, 16)}, "no array 'image' in d.npz", "rename 'imaeg' to 'image'"),
        ({"image": (20, 3, 256)}, "has 3 axes", "one row per sample"),
        ({"image": (20, 3, 16, 20)}, "axis 3 is 20 instead of 16", "shape of the input"),
        ({"image": (20, 16, 16, 3)}, "axis 1 is 16 instead of 3", "transpose"),
        ({"image": (0, 3, 16, 16)}, "d.npz has no samples", "a few dozen representative samples"),
    ],
)
def test_data_that_does_not_fit_the_inputs(
    run: Any, model: Path, tmp_path: Path, arrays: dict[str, tuple[int, ...]], problem: str, fix: str
) -> None:
    np.savez(tmp_path / "d.npz", **{name: np.ones(shape, np.float32) for name, shape in arrays.items()})
    before = _listing(tmp_path)
    _refused(run("quantize", model, "--calib-data", "d.npz"), problem, fix)
    assert _listing(tmp_path) == before


def test_data_of_the_wrong_type(run: Any, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=np.ones((20, 3, 16, 16), np.uint8))
    _refused(run("quantize", model, "--calib-data", "d.npz"), "is uint8, the input is float32", "scale them")


def test_data_with_nan_names_its_array(run: Any, model: Path, data: Path, tmp_path: Path) -> None:
    images = np.load(data)["image"]
    images[7, 0, 0, 0] = np.nan
    np.savez(tmp_path / "d.npz", image=images)
    _refused(run("quantize", model, "--calib-data", "d.npz"), "array 'image' in d.npz, sample 7, holds nan", "remove")


def test_too_few_samples_for_a_fixed_batch(run: Any, save_model: Any, tmp_path: Path) -> None:
    path = save_model(
        "fixed.onnx",
        "fixed (float[4,8] x) => (float[4,2] out) { a = MatMul (x, w)\n out = Relu (a) }",
        w=np.ones((8, 2), np.float32),
    )
    np.savez(tmp_path / "d.npz", x=np.ones((3, 8), np.float32))
    _refused(run("quantize", path, "--calib-data", "d.npz"), "do not fill one batch", "at least 4 samples")


def test_few_samples_are_remarked_on(run: Any, model: Path, tmp_path: Path, make_images: Callable[..., Any]) -> None:
    np.savez(tmp_path / "d.npz", image=make_images(3))
    outcome = run("quantize", model, "--calib-data", "d.npz")
    assert outcome.code == 0
    assert "only 3 samples" in outcome.err


def test_nan_in_a_weight_names_the_tensor(
    run: Any, save_model: Any, weights: dict[str, np.ndarray], network_text: str, data: Path
) -> None:
    weights["w4"][2, 3] = np.nan
    path = save_model("nan.onnx", network_text, **weights)
    _refused(run("quantize", path, "--calib-data", data), "the weight 'w4' holds NaN", "--exclude")


def test_nan_on_the_way_names_the_tensor(run: Any, save_model: Any, tmp_path: Path) -> None:
    path = save_model(
        "root.onnx",
        "root (float[n,8] x) => (float[n,2] out) { s = Sqrt (x)\n out = MatMul (s, w) }",
        w=np.ones((8, 2), np.float32),
    )
    np.savez(tmp_path / "d.npz", x=-np.ones((20, 8), np.float32))
    _refused(run("quantize", path, "--calib-data", "d.npz"), "the tensor 's' is NaN", "float model")


def test_everything_excluded(run: Any, model: Path, data: Path) -> None:
    _refused(run("quantize", model, "--calib-data", data, "--exclude", "*"), "nothing in the model", "--exclude")


def test_a_model_that_is_quantized_already(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--calib-data", data).code == 0
    _refused(run("quantize", "net.int8.onnx", "--calib-data", data), "quantized already", "qtool dequantize")


def test_a_state_dict_without_its_module(run: Any, tmp_path: Path, data: Path) -> None:
    import torch

    torch.save({"w": torch.ones(2)}, tmp_path / "net.pth")
    _refused(run("quantize", "net.pth", "--calib-data", data), "weights without the module", "--model")


def test_a_factory_for_a_graph(run: Any, model: Path, data: Path) -> None:
    _refused(run("quantize", model, "--calib-data", data, "--model", "a:b"), "is a graph:", "drop")


def test_an_output_that_exists_is_kept_without_force(run: Any, model: Path, data: Path) -> None:
    existing = model.with_name("net.int8.onnx")
    existing.write_bytes(b"precious")
    _refused(run("quantize", model, "--calib-data", data), "exists already", "--force")
    assert existing.read_bytes() == b"precious"
    assert run("quantize", model, "--calib-data", data, "--force").code == 0
    assert existing.read_bytes() != b"precious"


def test_an_output_folder_that_is_missing(run: Any, model: Path, data: Path) -> None:
    _refused(run("quantize", model, "--calib-data", data, "-o", "no/out.onnx"), "folder no does not exist", "mkdir")


def test_an_output_that_is_the_input(run: Any, model: Path, data: Path) -> None:
    outcome = run("quantize", model, "--calib-data", data, "-o", model, "--force")
    _refused(outcome, "the output is the input", "-o")


def test_an_output_that_is_no_onnx_file(run: Any, model: Path, data: Path) -> None:
    _refused(run("quantize", model, "--calib-data", data, "-o", "out.pth"), "does not end in .onnx", "-o name.onnx")


def test_an_unknown_integer_combination(run: Any, model: Path, data: Path) -> None:
    arguments = ("--activation-type", "s8", "--weight-type", "u8")
    _refused(run("quantize", model, "--calib-data", data, *arguments), "no kernel for s8", "--weight-type s8")


def test_statistics_of_another_model(
    run: Any, model: Path, data: Path, save_model: Any, weights: dict[str, np.ndarray], network_text: str
) -> None:
    assert run("calibrate", model, "--calib-data", data).code == 0
    weights["w2"][0] += 1.0
    other = save_model("other.onnx", network_text, **weights)
    _refused(run("quantize", other, "--calib-stats", "net.stats.npz"), "of another model", "calibrate this model")


def test_a_statistics_file_that_is_none(run: Any, model: Path, data: Path) -> None:
    _refused(run("quantize", model, "--calib-stats", data), "not a complete statistics file", "qtool calibrate")
    _refused(run("quantize", model, "--calib-stats", "no.npz"), "does not exist", "qtool calibrate")


def test_a_disk_that_fills_up_leaves_nothing_behind(
    run: Any, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, graph: object, path: Path) -> None:
        path.write_bytes(b"half a model")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    existing = model.with_name("net.int8.onnx")
    existing.write_bytes(b"precious")
    before = _listing(tmp_path)
    monkeypatch.setattr(qtool.formats.onnx.onnx_file.OnnxFile, "write", full)
    _refused(run("quantize", model, "--calib-data", data, "--force"), "the disk is full", "free some space")
    assert _listing(tmp_path) == before
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize("command", ["quantize", "calibrate"])
def test_an_interrupt_in_the_middle_leaves_nothing_behind(
    run: Any, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    before = _listing(tmp_path)

    def interrupted(*arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(qtool.calib.collect, "batch_length", interrupted)
    outcome = run(command, model, "--calib-data", data)
    assert outcome.code == 130
    assert "interrupted; no partial files are left" in outcome.err
    assert _listing(tmp_path) == before
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_float_model_in_the_way_of_a_state_dict_is_kept(run: Any, tmp_path: Path, data: Path) -> None:
    import torch

    (tmp_path / "arch.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4))\n"
    )
    torch.save(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4)).state_dict(), tmp_path / "net.pth")
    (tmp_path / "net.onnx").write_bytes(b"precious")
    before = _listing(tmp_path)
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    outcome = run("quantize", "net.pth", "--model", "arch.py:net", "--calib-data", data)
    assert outcome.code == 2
    assert "differs from the existing net.onnx" in outcome.err
    assert _listing(tmp_path) == before
