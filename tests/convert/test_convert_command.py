import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import safetensors.torch
import torch

SHAPE = ("--input-shape", "image=batch,3,16,16")


def outputs(path: Path, **feeds: np.ndarray) -> list[np.ndarray]:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 16, 16)).astype(np.float32)


def assert_agrees(path: Path, net: torch.nn.Module, name: str = "image") -> None:
    for count in (1, 2, 5):
        feed = images(count)
        with torch.no_grad():
            expected = net(torch.from_numpy(feed)).numpy()
        np.testing.assert_allclose(outputs(path, **{name: feed})[0], expected, atol=1e-5)


def test_a_state_dict_becomes_a_graph_that_agrees_with_torch(run: Any, folder: Path, net: torch.nn.Module) -> None:
    result = run("weights.pth", "--to", "onnx", "--model", "smallnet:make_net", *SHAPE, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["output"] == "weights.onnx"
    assert report["inputs"] == ["image (batch, 3, 16, 16)"]
    assert [comparison["sizes"]["batch"] for comparison in report["comparisons"]] == [2, 3, 1]
    assert all(output["relative"] < 1e-4 for one in report["comparisons"] for output in one["outputs"])
    assert_agrees(folder / "weights.onnx", net)
    model = onnx.load(folder / "weights.onnx")
    assert str(folder).encode() not in model.SerializeToString()
    assert not [name for name in sys.modules if "smallnet" in name]


def test_the_same_request_gives_the_same_bytes(run: Any, folder: Path) -> None:
    digests = set()
    for name in ("one.onnx", "two.onnx"):
        assert run("weights.pth", "--model", "smallnet.py:Net", *SHAPE, "-o", name).exit_code == 0
        digests.add(hashlib.sha256((folder / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_shapes_and_inputs_come_from_the_data(run: Any, folder: Path, photos: Path, net: torch.nn.Module) -> None:
    result = run("weights.pth", "--model", "smallnet.py:Net", "--calib-data", "photos.npz", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["inputs"] == ["image (batch, 3, 16, 16)"]
    assert {comparison["data"] for comparison in report["comparisons"]} == {"real"}
    assert_agrees(folder / "weights.onnx", net)


def test_a_training_checkpoint_converts_as_its_weights_do(run: Any, folder: Path, net: torch.nn.Module) -> None:
    state = {f"module.{name}": value for name, value in torch.load("weights.pth", weights_only=True).items()}
    torch.save({"epoch": 3, "model_state_dict": state, "optimizer": {"state": {}}}, "checkpoint.pt")
    result = run("checkpoint.pt", "--model", "smallnet:Net", *SHAPE)
    assert result.exit_code == 0, result.output
    assert "model_state_dict" in result.stdout
    assert_agrees(folder / "checkpoint.onnx", net)


def test_safetensors_weights_and_keyword_arguments_convert(run: Any, folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {name: value for name, value in torch.load("weights.pth", weights_only=True).items() if "head" not in name}
    state |= {"head.weight": torch.randn(2, 8, generator=generator), "head.bias": torch.zeros(2)}
    safetensors.torch.save_file(state, "weights.safetensors")
    arguments = ("--model", "smallnet:Net", "--model-kwargs", '{"classes": 2}')
    result = run("weights.safetensors", *arguments, "--input-shape", "photo=n,3,h,w", "--opset", "18", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["opset"], report["inputs"]) == (18, ["photo (n, 3, h, w)"])
    first, second, _ = (comparison["sizes"] for comparison in report["comparisons"])
    assert all(first[name] != second[name] for name in ("n", "h", "w"))
    assert outputs(folder / "weights.onnx", photo=np.zeros((1, 3, 20, 30), np.float32))[0].shape == (1, 2)


@pytest.mark.parametrize("opset", [15, 17, 21])
def test_a_graph_moves_to_another_opset_and_still_agrees(
    run: Any, folder: Path, net: torch.nn.Module, opset: int
) -> None:
    assert run("weights.pth", "--model", "smallnet:Net", *SHAPE).exit_code == 0
    result = run("weights.onnx", "--opset", str(opset), "--json")
    assert result.exit_code == 0, result.output
    path = folder / f"weights.opset{opset}.onnx"
    assert json.loads(result.stdout)["opset"] == opset
    assert next(entry.version for entry in onnx.load(path).opset_import if not entry.domain) == opset
    assert_agrees(path, net)


def test_weights_travel_between_pth_and_safetensors_unchanged(run: Any, folder: Path) -> None:
    state = torch.load("weights.pth", weights_only=True) | {"half": torch.ones(3, dtype=torch.bfloat16) / 3}
    torch.save(state, "mixed.pth")
    assert run("mixed.pth", "--to", "safetensors").exit_code == 0
    assert run("mixed.safetensors", "--to", "pth", "-o", "back.pth").exit_code == 0
    back = torch.load("back.pth", weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in state.items())
    assert safetensors.torch.load_file("mixed.safetensors").keys() == state.keys()


def test_results_go_to_the_folder_and_settings_fill_in_the_rest(run: Any, folder: Path) -> None:
    (folder / "build").mkdir()
    (folder / "qtool.toml").write_text('model = "weights.pth"\noutput_dir = "build"\n\n[convert]\nto = "safetensors"\n')
    result = run()
    assert result.exit_code == 0, result.output
    assert (folder / "build" / "weights.safetensors").exists()


def test_quiet_prints_nothing_and_the_table_names_the_difference(run: Any) -> None:
    arguments = ("weights.pth", "--model", "smallnet:make_net", *SHAPE, "--force")
    assert run(*arguments, "--quiet").stdout == ""
    shown = run(*arguments)
    assert "Largest difference" in shown.stdout
    assert "building the net" not in shown.stdout


def test_external_data_becomes_part_of_a_small_result(run: Any, folder: Path, net: torch.nn.Module) -> None:
    assert run("weights.pth", "--model", "smallnet:Net", *SHAPE).exit_code == 0
    model = onnx.load("weights.onnx")
    (folder / "apart").mkdir()
    onnx.save(model, "apart/m.onnx", save_as_external_data=True, location="m.data", size_threshold=100)
    result = run("apart/m.onnx", "--opset", "21", "-o", "m.onnx")
    assert result.exit_code == 0, result.output
    (folder / "apart" / "m.data").unlink()
    assert_agrees(folder / "m.onnx", net)
