"""Tensors of every kind are kept bit by bit, or named in an error; none vanishes, and none ends in a defect."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner, Result

from qtool.cli.app import app
from qtool.formats.library_noise import quiet_libraries
from qtool.formats.tied import ties

PLAIN = torch.arange(6.0).reshape(2, 3)
COMPLEX = torch.complex(PLAIN, PLAIN + 1)


def nested() -> torch.Tensor:
    with quiet_libraries():
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


KEPT: dict[str, Callable[[], torch.Tensor]] = {
    "negative view": lambda: torch._neg_view(PLAIN),
    "conjugate": COMPLEX.conj,
    "negative part": lambda: COMPLEX.conj().imag,
    "transposed": PLAIN.t,
    "expanded": lambda: PLAIN[:1].expand(4, 3),
    "float64": PLAIN.double,
    "empty": lambda: torch.empty(0, 4),
}
# Which .pth can keep, and .safetensors cannot.
SPARSE: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": torch.eye(3).to_sparse,
    "sparse rows": torch.eye(3).to_sparse_csr,
}
REFUSED: dict[str, Callable[[], torch.Tensor]] = {
    "without values": lambda: torch.empty(3, device="meta"),
    "nested": nested,
}


def convert(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["convert", *arguments])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(**tensors: Any) -> None:
    with quiet_libraries():
        torch.save({"plain": PLAIN, **tensors}, "in.pth")


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.to_dense().resolve_neg(), other.to_dense().resolve_neg())


@pytest.mark.parametrize("kind", KEPT)
def test_views_and_types_are_kept_in_both_formats(kind: str) -> None:
    tensor = KEPT[kind]()
    save(odd=tensor)
    for target, load in (("pth", torch.load), ("safetensors", safetensors.torch.load_file)):
        result = convert("in.pth", "--to", target, "-o", f"out.{target}")
        assert result.exit_code == 0, result.output
        loaded = load(f"out.{target}")
        assert same(loaded["odd"].resolve_conj(), tensor.resolve_conj())
        assert same(loaded["plain"], PLAIN)


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_tensors_go_where_they_can(kind: str) -> None:
    tensor = SPARSE[kind]()
    save(odd=tensor)
    assert convert("in.pth", "--to", "pth", "-o", "out.pth").exit_code == 0
    assert same(torch.load("out.pth")["odd"], tensor)
    _check_refused("in.pth", "--to", "safetensors")
    assert CliRunner().invoke(app, ["inspect", "in.pth"]).exit_code == 0


@pytest.mark.parametrize("target", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", REFUSED)
def test_tensors_that_no_format_keeps_are_named(kind: str, target: str) -> None:
    save(odd=REFUSED[kind]())
    _check_refused("in.pth", "--to", target)
    assert CliRunner().invoke(app, ["inspect", "in.pth"]).exit_code in (0, 2)


def test_the_name_of_metadata_is_no_name_for_a_tensor() -> None:
    save(__metadata__=PLAIN)
    result = convert("in.pth", "--to", "safetensors", "-o", "out.safetensors")
    assert result.exit_code == 2
    assert "'__metadata__'" in result.stderr
    assert not Path("out.safetensors").exists()
    assert convert("in.pth", "--to", "pth", "-o", "out.pth").exit_code == 0


def test_two_names_that_are_one_as_text_are_refused() -> None:
    torch.save({0: PLAIN, "0": PLAIN + 1}, "in.pth")
    result = convert("in.pth", "--to", "safetensors", "-o", "out.safetensors")
    assert result.exit_code == 2
    assert "two tensors called '0'" in result.stderr


def test_a_conjugate_is_not_tied_to_what_it_is_the_conjugate_of() -> None:
    assert ties({"z": COMPLEX, "conjugate": COMPLEX.conj(), "same": COMPLEX}) == {"same": "z"}
    assert ties({"w": PLAIN, "minus": torch._neg_view(PLAIN)}) == {}


@pytest.mark.parametrize("whole", [False, True])
def test_rounding_to_float32_is_said(whole: bool) -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 3).double()
    torch.save(module if whole else module.state_dict(), "in.pth")
    model = ("--trust-pickle",) if whole else ("--model", "torch.nn:Linear", "--model-kwargs", _SIZES)
    result = convert("in.pth", *model, "--input-shape", "input=batch,4", "-o", "out.onnx")
    assert result.exit_code == 0, result.output
    assert "rounded 2 weights from float64 to float32: weight; bias" in " ".join(result.stderr.split())
    assert onnx.load("out.onnx").graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    result = convert("in.pth", *model[: int(whole)], "--to", "safetensors", "-o", "out.safetensors")
    assert result.exit_code == 0, result.output
    loaded = safetensors.torch.load_file("out.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in module.state_dict().items())


_SIZES = '{"in_features": 4, "out_features": 3}'


def _check_refused(*arguments: str) -> None:
    result = convert(*arguments, "-o", "refused")
    assert result.exit_code == 2, result.output
    assert "'odd'" in result.stderr
    assert not Path("refused").exists()
