import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import Result

SHAPE = ("--input-shape", "image=batch,3,16,16")
NET = ("--model", "smallnet:Net")


def assert_refused(result: Result, problem: str, fix: str = "") -> None:
    """Checks for exit code 2, one line of what is wrong and one of how to fix it, and no traceback."""
    assert result.exit_code == 2, result.output
    error, hint = result.stderr.strip().splitlines()[-2:]
    assert error.startswith("error: ")
    assert problem in error, error
    assert hint.startswith("  fix: ")
    assert fix in hint, hint
    assert "Traceback" not in result.output


class Attack:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


@pytest.fixture
def graph(folder: Path) -> Path:
    node = onnx.helper.make_node("LayerNormalization", ["x", "scale"], ["y"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [node],
            "norm",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 300])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 300])],
            [onnx.numpy_helper.from_array(np.ones(300, np.float32), "scale")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, folder / "norm.onnx")
    return folder / "norm.onnx"


def test_a_missing_model_suggests_the_nearest(run: Any) -> None:
    assert_refused(run("weigths.pth", *NET, *SHAPE), "there is no file weigths.pth", "weights.pth")


def test_no_model_at_all_is_a_usage_error(run: Any) -> None:
    assert_refused(run("--to", "onnx"), "no model is given", "qtool.toml")


def test_an_empty_file_and_a_folder_are_named(run: Any, folder: Path) -> None:
    (folder / "empty.pth").touch()
    assert_refused(run("empty.pth", *NET), "is empty")
    assert_refused(run("."), "is a folder", "name the file in it")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["pth", "safetensors", "onnx"])
def test_truncated_files_of_every_kind_are_refused(
    run: Any, folder: Path, graph: Path, kind: str, share: float
) -> None:
    run("weights.pth", "--to", "safetensors")
    whole = {"pth": "weights.pth", "safetensors": "weights.safetensors", "onnx": "norm.onnx"}[kind]
    content = (folder / whole).read_bytes()
    (folder / f"cut.{kind}").write_bytes(content[: int(len(content) * share)])
    before = sorted(folder.iterdir())
    assert_refused(run(f"cut.{kind}", *NET, *SHAPE, "-o", "out.onnx"), "cut", "again")
    assert sorted(folder.iterdir()) == before


def test_a_text_file_named_onnx_is_called_text(run: Any, folder: Path) -> None:
    (folder / "note.onnx").write_text("remember the milk\n")
    assert_refused(run("note.onnx", "--opset", "18"), "is a text file that begins with 'remember the milk'")


def test_a_state_dict_without_its_model_says_so(run: Any) -> None:
    assert_refused(run("weights.pth"), "holds weights without the module", "--model pkg.module:factory")


def test_a_whole_module_is_refused_without_running_it(run: Any, folder: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), "whole.pth")
    assert_refused(run("whole.pth", *NET, *SHAPE), "holds Python objects", "state_dict()")
    torch.save({"w": torch.ones(1), "x": Attack(folder / "ran")}, "attack.pth")
    assert_refused(run("attack.pth", *NET, *SHAPE), "as an attack does")
    assert not (folder / "ran").exists()


def test_keys_that_do_not_fit_are_listed(run: Any) -> None:
    state = torch.load("weights.pth", weights_only=True)
    state["haed.bias"] = state.pop("head.bias")
    state["head.weight"] = torch.zeros(5, 9)
    torch.save(state, "other.pth")
    result = run("other.pth", *NET, *SHAPE)
    assert_refused(result, "1 missing (head.bias, nearest haed.bias)", "--model-kwargs")
    assert "1 unexpected (haed.bias, nearest head.bias)" in result.stderr
    assert "head.weight (5, 9) instead of (5, 8)" in result.stderr
    assert_refused(run("other.pth", "--to", "safetensors", *NET), "do not fit smallnet:Net")


@pytest.mark.parametrize(
    ("arguments", "problem", "fix"),
    [
        (("--model", "smallnet"), "names no factory", "file.py:factory"),
        (("--model", "nonet:Net"), "no Python module nonet", "nonet.py:factory"),
        (("--model", "smallnet:Nett"), "has no 'Nett'", "smallnet:Net?"),
        (("--model", "smallnet:not_a_net"), "returns a int", "return the module"),
        ((*NET, "--model-kwargs", "{width: 3}"), "not valid JSON", '{"width": 16}'),
        ((*NET, "--model-kwargs", "[3]"), "not a JSON object", '{"width": 16}'),
        ((*NET, "--model-kwargs", '{"depth": 3}'), "depth", "width=8, classes=5"),
        (("--model-kwargs", "{}"), "without --model", "--model"),
    ],
)
def test_a_wrong_factory_is_explained(run: Any, arguments: tuple[str, ...], problem: str, fix: str) -> None:
    assert_refused(run("weights.pth", *SHAPE, *arguments), problem, fix)


@pytest.mark.parametrize(
    ("shapes", "problem", "fix"),
    [
        ((), "shapes of the module's inputs are not known", "--input-shape image="),
        (("image=1,3,x y",), "an invalid dimension: 'x y'", "image=batch,3,224,224"),
        (("image=1,3,0,16",), "an invalid dimension: '0'", "positive"),
        (("image=1", "image=2"), "'image' twice", "once"),
        (("=1,3,16,16",), "names no input", "NAME=DIMS"),
        (("image=1,3,16,16:float99",), "unknown type", "int64"),
        (("image=1,4,16,16",), "the module fails on image (1, 4, 16, 16)", "--input-shape"),
        (("image=1,3,16,16:int64",), "the module fails on image (1, 3, 16, 16) int64", "--input-shape"),
        (("image=batch,3,16,16", "mask=batch"), "no parameter 'mask'", "image="),
    ],
)
def test_wrong_input_shapes_are_explained(run: Any, shapes: tuple[str, ...], problem: str, fix: str) -> None:
    options = [part for shape in shapes for part in ("--input-shape", shape)]
    assert_refused(run("weights.pth", *NET, *options), problem, fix)


def test_data_that_does_not_match_the_module_is_named(run: Any, folder: Path, photos: Path) -> None:
    assert_refused(run("weights.pth", *NET, "--calib-data", "phots.npz"), "no data at phots.npz", "photos.npz")
    data = ("--calib-data", "photos.npz")
    assert_refused(run("weights.pth", *NET, *data, "--input-shape", "image=batch,3,8,8"), "its declared shape is")
    assert_refused(run("weights.pth", *NET, *data, "--input-shape", "img=batch,3,16,16"), "no array 'img'", "'image'")


def test_an_existing_output_needs_force(run: Any, folder: Path) -> None:
    (folder / "weights.safetensors").write_text("precious")
    assert_refused(run("weights.pth", "--to", "safetensors"), "exists already", "--force")
    assert (folder / "weights.safetensors").read_text() == "precious"
    assert run("weights.pth", "--to", "safetensors", "--force").exit_code == 0


def test_an_output_folder_must_exist(run: Any) -> None:
    assert_refused(run("weights.pth", "--to", "safetensors", "-o", "no/out.safetensors"), "does not exist", "mkdir")
    assert_refused(run("weights.pth", "--to", "safetensors", "--output-dir", "no"), "does not exist", "mkdir")


def test_the_model_itself_is_never_replaced(run: Any, folder: Path) -> None:
    before = (folder / "weights.pth").read_bytes()
    assert_refused(run("weights.pth", "--to", "pth", "--force"), "would replace the model", "-o")
    assert (folder / "weights.pth").read_bytes() == before


def test_conversions_that_cannot_be_name_the_nearest_that_can(run: Any, graph: Path) -> None:
    for target in ("pth", "safetensors"):
        assert_refused(run("norm.onnx", "--to", target), "is an ONNX graph", "--to onnx --opset N")
    assert_refused(run("norm.onnx"), "is ONNX already", "--opset N")
    assert_refused(run("norm.onnx", "--opset", "13"), "which has no LayerNormalization", "opset 17 or newer")
    assert_refused(run("norm.onnx", "--opset", "999"), "opset 999 is not supported", "choose one from")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("norm.onnx", "--opset", "18", *NET), "--model"),
        (("norm.onnx", "--opset", "18", "--input-shape", "x=1,4"), "--input-shape"),
        (("weights.pth", "--to", "safetensors", *SHAPE), "--input-shape"),
        (("weights.pth", "--to", "safetensors", "--opset", "18"), "--opset"),
    ],
)
def test_an_option_without_effect_is_refused(run: Any, graph: Path, arguments: tuple[str, ...], option: str) -> None:
    assert_refused(run(*arguments), f"{option} has no effect", f"drop {option}")


def test_external_data_outside_of_the_folder_is_refused(run: Any, folder: Path, graph: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "secret").write_bytes(bytes(1200))
    model = onnx.load(graph)
    onnx.save(model, "inner/m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    stored = onnx.load("inner/m.onnx", load_external_data=False)
    stored.graph.initializer[0].external_data[0].value = "../secret"
    (folder / "inner" / "m.onnx").write_bytes(stored.SerializeToString())
    assert_refused(run("inner/m.onnx", "--opset", "18", "-o", "out.onnx"), "'scale' points outside", "trust")


def test_a_graph_that_computes_something_else_is_an_error(
    run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(*arguments: Any, **options: Any) -> Any:
        program = export(*arguments, **options)
        bias = program.model.graph.initializers["head.bias"]
        bias.const_value = type(bias.const_value)(torch.full((5,), 0.5))
        return program

    export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", spoiled)
    result = run("weights.pth", *NET, *SHAPE)
    assert_refused(result, "the converted graph is wrong: output", "--opset")
    assert not (folder / "weights.onnx").exists()


@pytest.mark.parametrize("target", ["pth", "safetensors"])
def test_a_full_disk_leaves_nothing_behind(
    run: Any, folder: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BufferedWriter):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode == "wb" and f"out.{target}" in path.name:
            return Full(io.FileIO(path, "wb"))
        return real(path, mode, *arguments, **options)

    real = Path.open
    monkeypatch.setattr(Path, "open", opened)
    before = sorted(folder.iterdir())
    assert_refused(run("weights.pth", "--to", target, "-o", f"out.{target}"), "the disk is full", "free some space")
    assert sorted(folder.iterdir()) == before
