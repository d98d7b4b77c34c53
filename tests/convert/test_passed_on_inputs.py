"""Modules that hand their arguments on, and outputs that are no tensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

CODE = """
import torch


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.left = torch.nn.Linear(4, 3)
        self.right = torch.nn.Linear(4, 3, bias=False)

    def forward(self, image, other, scale=None):
        found = self.left(image) - 2 * self.right(other)
        return found if scale is None else found * scale


class Passing(torch.nn.Module):
    def __init__(self, module=None):
        super().__init__()
        self.module = Inner() if module is None else module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


class Places(torch.nn.Module):
    def __init__(self, module=None):
        super().__init__()
        self.net = Inner() if module is None else module

    def forward(self, *inputs):
        return self.net(*inputs)


class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Inner()

    def forward(self, **inputs):
        return torch.relu(self.net(**inputs))


class Several(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one = Inner()
        self.two = torch.nn.Linear(3, 3)

    def forward(self, *args, **kwargs):
        return self.two(self.one(*args, **kwargs))


def twice():
    return Places(Passing())


class NoInputs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self):
        return self.weight


class Plain(torch.nn.Module):
    def __init__(self, form="tuple"):
        super().__init__()
        self.net = torch.nn.Linear(4, 3)
        self.form = form

    def forward(self, x):
        y = self.net(x)
        return {"tuple": (y, 3), "dict": {"y": y, "count": 2.5, "why": "text"}, "none": (y, None)}[self.form]
"""
BOTH = ("--input-shape", "image=batch,4", "--input-shape", "other=batch,4")


@pytest.fixture
def code(folder: Path) -> Any:
    (folder / "passing.py").write_text(CODE)
    names: dict[str, Any] = {}
    exec(compile(CODE, "passing.py", "exec"), names)
    return names


def feeds(*names: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {name: random.normal(size=(5, 4)).astype(np.float32) for name in names}


@pytest.mark.parametrize("factory", ["Passing", "Places", "Words", "twice"])
@pytest.mark.parametrize("way", ["shapes", pytest.param("data", marks=pytest.mark.slow)])
def test_the_inner_module_says_what_the_inputs_are(run: Any, folder: Path, code: Any, factory: str, way: str) -> None:
    module = code[factory]().eval()
    torch.save(module.state_dict(), "w.pth")
    given = feeds("image", "other")
    np.savez("data.npz", **given)
    shapes = BOTH if way == "shapes" else ("--calib-data", "data.npz")
    result = run("w.pth", "--model", f"passing.py:{factory}", *shapes, "-o", "m.onnx", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["inputs"] == ["image (batch, 4)", "other (batch, 4)"]
    session = ort.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    expected = (
        module(**{name: torch.from_numpy(array) for name, array in given.items()})
        if factory == "Words"
        else (module(*map(torch.from_numpy, given.values())))
    )
    np.testing.assert_allclose(session.run(None, given)[0], expected.detach().numpy(), atol=1e-5)
    stored = {tensor.name for tensor in onnx.load("m.onnx").graph.initializer}
    assert not any(name.startswith("program.") for name in stored)


def test_pickled_modules_are_looked_through_as_well(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pickledmodule.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(folder))
    import importlib

    module = importlib.import_module("pickledmodule").Passing().eval()
    torch.save(module, "own.pt")
    result = run("own.pt", *BOTH, "--trust-pickle", "-o", "m.onnx")
    assert result.exit_code == 0, result.output
    given = feeds("image", "other")
    expected = module(*map(torch.from_numpy, given.values())).detach().numpy()
    session = ort.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, given)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("factory", "said", "fix"),
    [
        ("Several", "takes *args and **kwargs", "torch.save(model.one, path), or build that one with --model"),
        ("NoInputs", "forward takes no inputs", "let it take its inputs as parameters"),
    ],
)
@pytest.mark.parametrize("way", ["shapes", "data", "nothing"])
def test_modules_that_do_not_tell_get_advice(
    run: Any, folder: Path, code: Any, factory: str, said: str, fix: str, way: str
) -> None:
    torch.save(code[factory]().state_dict(), "w.pth")
    np.savez("data.npz", **feeds("image", "other"))
    shapes = {"shapes": BOTH, "data": ("--calib-data", "data.npz"), "nothing": ()}[way]
    result = run("w.pth", "--model", f"passing.py:{factory}", *shapes, "-o", "m.onnx")
    assert result.exit_code == 2, result.output
    text = " ".join(result.output.split())
    assert said in text
    assert fix in text


def test_an_input_that_the_inner_module_lacks_is_named(run: Any, folder: Path, code: Any) -> None:
    torch.save(code["Passing"]().state_dict(), "w.pth")
    result = run("w.pth", "--model", "passing.py:Passing", "--input-shape", "image=1,4", "--input-shape", "othr=1,4")
    assert result.exit_code == 2
    assert "no parameter 'othr' (it takes image, other, scale)" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("form", "left"),
    [("tuple", ["[1] = 3"]), ("dict", ["['count'] = 2.5", "['why'] = text"]), ("none", [])],
)
def test_outputs_that_are_no_tensors_are_said_to_be_left_out(
    run: Any, folder: Path, code: Any, form: str, left: list[str]
) -> None:
    torch.save(code["Plain"](form).state_dict(), "w.pth")
    arguments = ("w.pth", "--model", "passing.py:Plain", "--model-kwargs", json.dumps({"form": form}))
    result = run(*arguments, "--input-shape", "x=batch,4", "-o", "m.onnx", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["left_out_outputs"] == left
    assert len(onnx.load("m.onnx").graph.output) == 1
    said = " ".join(result.stderr.split())
    assert ("left out non-tensors among the module's outputs" in said) == bool(left)
