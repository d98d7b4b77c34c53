"""Files of torch.export say which lengths they take, and give whatever their programs return."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch.export import Dim, export, register_dataclass

from qtool.formats.library_noise import quiet_libraries
from qtool.formats.torch.example_inputs import InputSpec, Length, allowed_sizes, first_sizes

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(0)


@dataclasses.dataclass
class Answer:
    scores: torch.Tensor
    best: torch.Tensor


register_dataclass(Answer, serialized_type_name="tests.Answer")


class Net(torch.nn.Module):
    """A layer, and what is done with its result and the input."""

    def __init__(self, after: Callable[..., Any]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.table = torch.nn.Parameter(torch.randn(32, 4))
        self.after = after

    def forward(self, x: torch.Tensor) -> Any:
        return self.after(self.layer(x), x)


class Positions(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x + self.table[: x.shape[1]])


class Halves(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x.reshape(x.shape[0] // 2, 2, 4).sum(1))


class OneLonger(Net):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return self.layer(x) + self.layer(y)[1:]


def stored(module: torch.nn.Module, *inputs: torch.Tensor, name: str = "p.pt2", **shapes: Any) -> None:
    with quiet_libraries():
        torch.export.save(export(module.eval(), inputs, dynamic_shapes=shapes or None), name)


def plain(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y


def check(module: torch.nn.Module, *inputs: np.ndarray) -> None:
    session = ort.InferenceSession("p.onnx", providers=["CPUExecutionProvider"])
    feeds = dict(zip((one.name for one in session.get_inputs()), inputs, strict=True))
    with torch.no_grad():
        expected = module(*(torch.from_numpy(one) for one in inputs))
    np.testing.assert_allclose(session.run(None, feeds)[0], expected.numpy(), atol=1e-5)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def test_lengths_in_a_range_are_tried_inside_of_it(run: Any) -> None:
    module = Positions(plain)
    stored(module, torch.randn(2, 6, 4), x={0: Dim("n", min=2, max=8), 1: Dim("length", min=4, max=32)})
    result = run("p.pt2", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["inputs"] == ["x (batch, x_dim1, 4)"]
    lengths = [one["sizes"]["x_dim1"] for one in report["comparisons"]]
    assert len(set(lengths)) > 1
    assert all(4 <= length <= 32 for length in lengths)
    check(module, floats(5, 31, 4))


def test_lengths_that_are_multiples_of_a_free_one(run: Any) -> None:
    module = Halves(plain)
    stored(module, torch.randn(6, 4), x={0: 2 * Dim("half", min=1, max=64)})
    result = run("p.pt2", "--json")
    assert result.exit_code == 0, result.output
    assert all(one["sizes"]["batch"] % 2 == 0 for one in json.loads(result.stdout)["comparisons"])
    check(module, floats(10, 4))


def test_lengths_that_follow_from_that_of_another_input(run: Any) -> None:
    module, n = OneLonger(plain), Dim("n", min=2, max=100)
    stored(module, torch.randn(5, 4), torch.randn(6, 4), x={0: n}, y={0: n + 1})
    result = run("p.pt2", "--json")
    assert result.exit_code == 0, result.output
    sizes = [one["sizes"] for one in json.loads(result.stdout)["comparisons"]]
    assert all(one["y_dim0"] == one["batch"] + 1 for one in sizes)
    check(module, floats(7, 4), floats(8, 4))


@pytest.mark.parametrize(
    ("shape", "said"),
    [("x=2,64,4", "lengths from 4 to 32"), ("x=2,8", "3 dimensions"), ("x=2,8,5", "exactly 4 in axis 2")],
)
def test_shapes_that_the_program_does_not_take_are_explained(run: Any, shape: str, said: str) -> None:
    stored(Positions(plain), torch.randn(2, 6, 4), x={0: Dim("n"), 1: Dim("length", min=4, max=32)})
    result = run("p.pt2", "--input-shape", shape)
    assert result.exit_code == 2
    assert said in result.stderr


def test_fixed_lengths_and_names_of_free_ones_can_be_given(run: Any) -> None:
    module = Positions(plain)
    stored(module, torch.randn(2, 6, 4), x={0: Dim("n"), 1: Dim("length", min=4, max=32)})
    assert run("p.pt2", "--input-shape", "x=3,steps,4").exit_code == 0
    session = ort.InferenceSession("p.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [3, "steps", 4]
    check(module, floats(3, 9, 4))


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_a_program_of_a_fixed_batch_takes_data(run: Any, suffix: str) -> None:
    stored(Net(plain), torch.randn(2, 4))
    np.savez("d.npz", x=floats(7, 4))
    np.save("d.npy", floats(7, 4))
    result = run("p.pt2", "--calib-data", f"d.{suffix}", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["inputs"] == ["x (2, 4)"]
    assert [one["data"] for one in report["comparisons"]] == ["real"]


@pytest.mark.parametrize(
    ("after", "outputs"),
    [
        (lambda y, x: (y, x.shape[1]), 1),
        (lambda y, x: (y, x.shape[0]), 1),
        (lambda y, x: (y, y.argmax(1)), 2),
        (lambda y, x: (y, y), 2),
        (lambda y, x: (y, x), 2),
        (lambda y, x: (y, None, {"one": torch.ones(3)}), 2),
        (lambda y, x: Answer(y, y.argmax(1)), 2),
    ],
)
@pytest.mark.parametrize("free", [False, True])
def test_whatever_a_program_returns_becomes_outputs(
    run: Any, after: Callable[..., Any], outputs: int, free: bool
) -> None:
    module = Net(after)
    stored(module, torch.randn(2, 4), **({"x": {0: Dim("n")}} if free else {}))
    result = run("p.pt2", "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["outputs"]) == outputs
    session = ort.InferenceSession("p.onnx", providers=["CPUExecutionProvider"])
    x = floats(2, 4)
    with torch.no_grad():
        expected = module.layer(torch.from_numpy(x)).numpy()
    values = session.run(None, {session.get_inputs()[0].name: x})
    assert len(values) == outputs
    np.testing.assert_allclose(values[0], expected, atol=1e-6)


def test_outputs_of_a_class_are_called_by_its_fields_where_the_class_is_missing(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclasses.dataclass
    class Here:
        scores: torch.Tensor
        best: torch.Tensor

    register_dataclass(Here, serialized_type_name="tests.elsewhere.A")
    stored(Net(lambda y, x: Here(y, y.argmax(1))), torch.randn(2, 4))
    content = Path("p.pt2").read_bytes()
    # As another process would see it: the same name, of the same length, which nobody has registered.
    assert content.count(b"tests.elsewhere.A") > 0
    _rewrite("p.pt2", b"tests.elsewhere.A", b"tests.elsewhere.B")
    result = run("p.pt2", "--json")
    assert result.exit_code == 0, result.output
    assert [one.partition(" ")[0] for one in json.loads(result.stdout)["outputs"]] == ["scores", "best"]


@pytest.mark.parametrize("mixed", [False, True])
def test_programs_of_bfloat16_compute_in_float(run: Any, mixed: bool) -> None:
    if mixed:
        module = torch.nn.Sequential(torch.nn.Linear(4, 3), Rounding(), torch.nn.Linear(3, 3))
        x = torch.randn(2, 4)
    else:
        module, x = Net(plain).bfloat16(), torch.randn(2, 4).bfloat16()
    stored(module, x)
    result = run("p.pt2")
    assert result.exit_code == 0, result.output
    session = ort.InferenceSession("p.onnx", providers=["CPUExecutionProvider"])
    (value,) = session.run(None, {session.get_inputs()[0].name: x.float().numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(value, module(x).float().numpy(), atol=3e-2)


class Rounding(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.to(torch.bfloat16) * 2).to(torch.float32)


def test_complex_outputs_are_explained(run: Any) -> None:
    stored(Net(lambda y, x: torch.fft.fft(y)), torch.randn(2, 4))
    result = run("p.pt2")
    assert result.exit_code == 2
    assert "view_as_real" in result.stderr


def test_sizes_obey_what_inputs_allow() -> None:
    lengths = {"a": Length(number="n", low=3, high=9), "b": Length(number="n", factor=2, offset=1)}
    specs = [
        InputSpec(name="x", dims=("a", 4), dtype=np.dtype("f"), lengths=lengths),
        InputSpec(name="y", dims=("k", "b"), dtype=np.dtype("f"), lengths=lengths),
    ]
    assert first_sizes(specs, None) == {"a": 3, "k": 2, "b": 7}
    for wanted in range(1, 20):
        sizes = allowed_sizes(specs, {"a": wanted, "k": wanted, "b": 5})
        assert sizes == {"a": min(max(wanted, 3), 9), "k": wanted, "b": 2 * min(max(wanted, 3), 9) + 1}


def _rewrite(name: str, old: bytes, new: bytes) -> None:
    """Replaces text in the JSON members of a zip file."""
    import zipfile

    with zipfile.ZipFile(name) as archive:
        members = [(member, archive.read(member)) for member in archive.infolist()]
    with zipfile.ZipFile(name, "w") as archive:
        for member, content in members:
            archive.writestr(member.filename, content.replace(old, new))
