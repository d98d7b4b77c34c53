"""``qtool quantize`` on a small network, from the command line to what onnxruntime computes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qtool.runtime.session import Session
from tests.closeness import sqnr_db_of
from tests.graphs_read import initializers_of, logits_of


def test_the_result_is_small_and_close_and_runs_on_integers(
    run: Any, model: Path, data: Path, make_images: Callable[..., np.ndarray]
) -> None:
    outcome = run("quantize", model, "--calib-data", data, "--json")
    assert outcome.code == 0, outcome.err
    report = outcome.json
    quantized = model.with_name("net.int8.onnx")
    assert report["output"] == str(quantized)
    assert report["coverage"]["integer_nodes"] == report["coverage"]["quantizable_nodes"] == 7
    fresh = make_images(64, seed=9)
    assert sqnr_db_of(logits_of(model, fresh), logits_of(quantized, fresh)) > 25
    assert report["outputs"][0]["sqnr_db"] > 25
    stored = initializers_of(quantized)
    assert not [name for name, array in stored.items() if array.dtype == np.float32 and array.size > 16]


def test_people_see_tables_on_stdout(run: Any, model: Path, data: Path) -> None:
    outcome = run("quantize", model, "--calib-data", data)
    assert outcome.code == 0
    for expected in ("Runs on integers", "7 of 7", "SQNR", "36 samples", "4 samples held back", "net.manifest.json"):
        assert expected.replace("net.manifest", "net.int8.manifest") in outcome.out


def test_batchnorm_is_folded_and_an_old_opset_raised(run: Any, save_model: Any, data: Path) -> None:
    generator = np.random.default_rng(0)
    path = save_model(
        "old.onnx",
        """old (float[1,3,16,16] image) => (float[1,8,14,14] out)
        {
            c = Conv (image, w)
            n = BatchNormalization (c, scale, shift, mean, variance)
            r = Relu (n)
            d = Conv (r, v)
            out = Relu (d)
        }""",
        opset=9,
        w=generator.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32),
        v=generator.normal(0, 0.3, (8, 8, 1, 1)).astype(np.float32),
        scale=generator.uniform(0.5, 2, 8).astype(np.float32),
        shift=generator.normal(0, 0.2, 8).astype(np.float32),
        mean=generator.normal(0, 0.2, 8).astype(np.float32),
        variance=generator.uniform(0.5, 2, 8).astype(np.float32),
    )
    outcome = run("quantize", path, "--calib-data", data, "--json")
    assert outcome.code == 0, outcome.err
    written = onnx.load(path.with_name("old.int8.onnx"))
    assert written.opset_import[0].version >= 13
    assert "BatchNormalization" not in [node.op_type for node in written.graph.node]
    assert outcome.json["outputs"][0]["sqnr_db"] > 20


def test_a_dry_run_shows_every_tensor_and_writes_nothing(run: Any, model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    outcome = run("quantize", model, "--dry-run", "--exclude", "Gemm", "--json")
    assert outcome.code == 0, outcome.err
    plan = outcome.json
    kinds = {entry["tensor"]: (entry["kind"], entry["type"]) for entry in plan["tensors"]}
    assert kinds["image"] == ("activation", "u8")
    assert kinds["w1"] == ("weight", "s8")
    assert kinds["b1"] == ("bias", "s32")
    assert "logits" not in kinds
    assert [entry["node"] for entry in plan["float_nodes"] if entry["operator"] == "Gemm"] == ["/logits/Gemm"]
    assert sorted(tmp_path.iterdir()) == before
    table = run("quantize", model, "--dry-run")
    assert "per-channel, axis 0" in table.out


def test_statistics_give_what_the_same_data_gives(
    run: Any, model: Path, tmp_path: Path, make_images: Callable[..., np.ndarray]
) -> None:
    # So few samples that none is held back.
    np.savez(tmp_path / "few.npz", image=make_images(9))
    assert run("calibrate", model, "--calib-data", "few.npz", "-o", "few.stats.npz").code == 0
    corrections = ("--no-gptq", "--no-smoothquant", "--no-cle", "--bias-correction")
    same = ("--method", "mse", "--effort", "fast", *corrections)
    assert run("quantize", model, "--calib-data", "few.npz", *same, "-o", "data.onnx").code == 0
    assert run("quantize", model, "--calib-stats", "few.stats.npz", *same, "-o", "stats.onnx").code == 0
    assert Path("data.onnx").read_bytes() == Path("stats.onnx").read_bytes()


def test_data_beside_statistics_is_what_the_result_is_compared_on(run: Any, model: Path, data: Path) -> None:
    assert run("calibrate", model, "--calib-data", data).code == 0
    alone = run("quantize", model, "--calib-stats", "net.stats.npz", "-o", "alone.onnx")
    assert alone.code == 0, alone.err
    assert "runs on random inputs" in alone.out
    assert "SQNR" not in alone.out
    both = run("quantize", model, "--calib-stats", "net.stats.npz", "--calib-data", data, "-o", "both.onnx", "--json")
    assert both.code == 0, both.err
    assert both.json["samples"] == 40
    assert "calibration samples" in both.json["compared_on"]
    assert both.json["outputs"][0]["sqnr_db"] > 25
    assert Path("alone.onnx").read_bytes() == Path("both.onnx").read_bytes()


def test_statistics_serve_other_selections_and_types(run: Any, model: Path, data: Path) -> None:
    assert run("calibrate", model, "--calib-data", data).code == 0
    for options in ((), ("--activation-type", "s8"), ("--exclude", "Flatten"), ("--exclude", "Add")):
        outcome = run("quantize", model, "--calib-stats", "net.stats.npz", *options, "--force", "--json")
        assert outcome.code == 0, outcome.err
        assert outcome.json["outputs"][0]["sqnr_db"] > 15


def test_symmetric_activations_need_statistics_of_their_own(run: Any, model: Path, data: Path) -> None:
    assert run("calibrate", model, "--calib-data", data).code == 0
    outcome = run("quantize", model, "--calib-stats", "net.stats.npz", "--activations-symmetric")
    assert outcome.code == 2
    assert "know nothing of the tensor 'c1'" in outcome.err
    assert "--activations-symmetric" in outcome.err
    assert run("calibrate", model, "--calib-data", data, "--activations-symmetric", "--force").code == 0
    assert run("quantize", model, "--calib-stats", "net.stats.npz", "--activations-symmetric").code == 0


def test_the_same_run_writes_the_same_bytes(run: Any, model: Path, data: Path) -> None:
    digests = []
    for _ in range(2):
        assert run("quantize", model, "--calib-data", data, "--method", "percentile", "--force").code == 0
        written = [model.with_name("net.int8.onnx"), model.with_name("net.int8.manifest.json")]
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in written])
    assert digests[0] == digests[1]


def test_tied_weights_stay_one_tensor(run: Any, save_model: Any, data: Path) -> None:
    generator = np.random.default_rng(2)
    path = save_model(
        "tied.onnx",
        """tied (float[n,3,16,16] image) => (float[n,3,16,16] out)
        {
            a = Conv <pads = [1,1,1,1]> (image, w)
            r = Relu (a)
            b = Conv <pads = [1,1,1,1]> (r, w)
            s = Relu (b)
            c = Conv <pads = [1,1,1,1]> (s, w)
            out = Sigmoid (c)
        }""",
        w=generator.normal(0, 0.2, (3, 3, 3, 3)).astype(np.float32),
    )
    outcome = run("quantize", path, "--calib-data", data, "--json")
    assert outcome.code == 0, outcome.err
    stored = initializers_of(path.with_name("tied.int8.onnx"))
    assert [name for name, array in stored.items() if array.shape == (3, 3, 3, 3)] == ["w_quantized"]
    assert outcome.json["outputs"][0]["sqnr_db"] > 20


def test_dead_channels_and_constant_tensors_are_named_and_their_scales_finite(
    run: Any, save_model: Any, weights: dict[str, np.ndarray], network_text: str, data: Path
) -> None:
    weights["w1"][3] = 0.0
    weights["b1"][3] = 0.7
    weights["w3"][:] = 0.0
    weights["b3"][:] = 0.0
    path = save_model("dead.onnx", network_text, **weights)
    outcome = run("quantize", path, "--calib-data", data, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["dead_channels"]["w1"] == [3]
    assert outcome.json["dead_channels"]["w3"] == list(range(16))
    assert outcome.json["constant_tensors"] == ["c3"]
    for name, array in initializers_of(path.with_name("dead.int8.onnx")).items():
        if name.endswith("_scale"):
            assert np.isfinite(array).all()
            assert (array > 0).all()
    assert outcome.json["outputs"][0]["sqnr_db"] > 20


def test_a_tensor_with_mask_values_stays_float(run: Any, save_model: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    path = save_model(
        "masked.onnx",
        """masked (float[n,8] x, float[n,8] mask) => (float[n,4] out)
        {
            a = MatMul (x, w)
            m = Add (a, mask)
            b = MatMul (m, v)
            p = Softmax (b)
            out = MatMul (p, u)
        }""",
        w=generator.normal(0, 0.5, (8, 8)).astype(np.float32),
        v=np.abs(generator.normal(0, 0.5, (8, 8))).astype(np.float32),
        u=generator.normal(0, 0.5, (8, 4)).astype(np.float32),
    )
    mask = np.where(np.arange(8) % 4 == 3, np.float32(-1e9), np.float32(0)) * np.ones((20, 1), np.float32)
    np.savez(tmp_path / "m.npz", x=generator.normal(0, 1, (20, 8)).astype(np.float32), mask=mask)
    outcome = run("quantize", path, "--calib-data", "m.npz", "--json")
    assert outcome.code == 0, outcome.err
    reasons = {entry["node"]: entry["reason"] for entry in outcome.json["float_nodes"]}
    assert reasons["/b/MatMul"] == "'m' reaches -1e+09, as masks do"
    assert "/a/MatMul" not in reasons
    assert outcome.json["outputs"][0]["max_abs_error"] < 0.1


def test_samples_of_any_length_calibrate_a_sequence_model(run: Any, save_model: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    path = save_model(
        "sequence.onnx",
        """sequence (float[n,t,8] x) => (float[n,t,6] out)
        {
            a = MatMul (x, w)
            b = Add (a, c)
            r = Relu (b)
            out = MatMul (r, v)
        }""",
        w=generator.normal(0, 0.5, (8, 16)).astype(np.float32),
        c=generator.normal(0, 0.2, 16).astype(np.float32),
        v=generator.normal(0, 0.5, (16, 6)).astype(np.float32),
    )
    folder = tmp_path / "sequences"
    folder.mkdir()
    for number in range(12):
        np.savez(folder / f"{number}.npz", x=generator.normal(0, 1, (1, 3 + number, 8)).astype(np.float32))
    outcome = run("quantize", path, "--calib-data", folder, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["samples"] == 11
    assert outcome.json["outputs"][0]["sqnr_db"] > 20


def test_a_state_dict_is_quantized_in_one_go(run: Any, tmp_path: Path, data: Path) -> None:
    import torch

    code = (
        "import torch\n"
        "def net(width=8):\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.BatchNorm2d(width), torch.nn.ReLU(),\n"
        "        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 5))\n"
    )
    (tmp_path / "arch.py").write_text(code)
    scope: dict[str, Any] = {}
    exec(compile(code, "arch.py", "exec"), scope)
    torch.manual_seed(0)
    torch.save(scope["net"](12).state_dict(), tmp_path / "net.pth")
    arguments = ("--model", "arch.py:net", "--model-kwargs", '{"width": 12}', "--calib-data", data)
    outcome = run("quantize", "net.pth", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["outputs"][0]["sqnr_db"] > 20
    assert outcome.json["float_model"] == "net.onnx"
    float_model = Path("net.onnx").read_bytes()
    assert run("convert", "net.pth", *arguments, "--to", "onnx", "-o", "converted_net.onnx").code == 0
    assert Path("converted_net.onnx").read_bytes() == float_model
    with np.load(data) as arrays:
        images = arrays["image"]
    module = scope["net"](12)
    module.load_state_dict(torch.load("net.pth", weights_only=True))
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(images)).numpy()
    session = Session(Path("net.int8.onnx"))
    (result,) = session.run({session.inputs[0].name: images}).values()
    assert sqnr_db_of(expected, result) > 20
    # The float model that stands there already is the same, so a second run may pass over it.
    assert run("quantize", "net.pth", *arguments, "-o", "again.onnx").code == 0


def test_settings_make_the_short_commands_work(run: Any, model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "qtool.toml").write_text(
        'model = "net.onnx"\ncalib_data = "calib.npz"\neval_data = "calib.npz"\noutput_dir = "results"\n'
        '[quantize]\nmethod = "mse"\nexclude = ["/c2/*"]\n[report]\nrounds = 2\n'
    )
    outcome = run("quantize", "--per-channel", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["method"] == "mse"
    assert "/c2/Conv" in [entry["node"] for entry in outcome.json["float_nodes"]]
    assert (tmp_path / "results" / "net.int8.onnx").is_file()
    report = run("report", "--json")
    assert report.code == 0, report.err
    assert report.json["figures"]["sqnr_db"] > 20
