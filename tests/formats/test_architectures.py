import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qtool.formats.errors import FormatError
from qtool.formats.torch.architecture import Architecture, building
from qtool.formats.torch.fitting import fit

CODE = """
import sys
import torch
from zoo_parts import WIDTH

print("hello from the code")
LIMIT = 3
ready = torch.nn.Linear(2, 2)

class Net(torch.nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.layer = torch.nn.Linear(4, width)

def make_net(width, depth=1):
    return Net(width)

def broken():
    raise RuntimeError("no such file: weights.bin")

def gives_up():
    sys.exit("bye")

def gives_nothing():
    return None
"""


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "zoo_code.py").write_text(CODE)
    (tmp_path / "zoo_parts.py").write_text("WIDTH = 5\n")
    (tmp_path / "zoo_broken.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not {name for name in sys.modules if "zoo_" in name}, "nothing stays imported"
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize("location", ["zoo_code", "zoo_code.py", "./zoo_code.py"])
def test_a_module_is_built_from_a_module_name_or_a_file(zoo: Path, location: str) -> None:
    with building(Architecture(f"{location}:Net")) as module:
        assert module.layer.out_features == 5
        assert not module.training
    with building(Architecture(f"{location}:make_net", {"width": 7})) as module:
        assert module.layer.out_features == 7
    with building(Architecture(f"{location}:ready")) as module:
        assert module.in_features == 2


def test_a_file_elsewhere_finds_the_files_beside_it(
    zoo: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with building(Architecture(f"{zoo / 'zoo_code.py'}:Net")) as module:
        assert module.layer.out_features == 5


def test_what_the_code_prints_stays_off_stdout(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with building(Architecture("zoo_code:Net")):
        print("inside")  # noqa: T201
    said = capsys.readouterr()
    assert said.out == ""
    assert "hello from the code" in said.err


@pytest.mark.parametrize(
    ("factory", "kwargs", "problem", "fix"),
    [
        ("zoo_code", {}, "names no factory", "pkg.module:factory"),
        (":Net", {}, "names no factory", "pkg.module:factory"),
        ("zoo_missing:Net", {}, "no Python module zoo_missing", "zoo_missing.py:factory"),
        ("missing.py:Net", {}, "no file missing.py", "before the colon"),
        ("zoo_broken:Net", {}, "no_such_library", "until it works"),
        ("zoo_broken.py:Net", {}, "no_such_library", "until it works"),
        ("zoo_code:Nett", {}, "has no 'Nett'", "zoo_code:Net?"),
        ("zoo_code:xyzzy", {}, "has no 'xyzzy'", "it offers Net, make_net"),
        ("zoo_code:LIMIT", {}, "is a int", "function or class"),
        ("zoo_code:ready", {"width": 3}, "is a module already", "drop --model-kwargs"),
        ("zoo_code:make_net", {}, "missing a required argument: 'width'", "width, depth=1"),
        ("zoo_code:make_net", {"widht": 3}, "'widht'|'width'", "width, depth=1"),
        ("zoo_code:broken", {}, "RuntimeError: no such file: weights.bin", "--debug"),
        ("zoo_code:gives_up", {}, "SystemExit: bye", "--debug"),
        ("zoo_code:gives_nothing", {}, "returns a NoneType", "return the module"),
    ],
)
def test_code_that_builds_no_module_is_explained(
    zoo: Path, factory: str, kwargs: dict[str, object], problem: str, fix: str
) -> None:
    with pytest.raises(FormatError, match=problem) as caught, building(Architecture(factory, kwargs)):
        pass
    assert fix in caught.value.fix


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(4, 3)
        self.head = torch.nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("positions", torch.arange(4), persistent=False)


def state() -> dict[str, torch.Tensor]:
    return {name: torch.randn(tensor.shape).to(tensor.dtype) for name, tensor in Tied().state_dict().items()}


def test_weights_are_put_in_their_places() -> None:
    module, weights = Tied(), state()
    weights["head.weight"] = weights["embed.weight"]
    assert fit(module, weights, factory="x:y") is None
    assert torch.equal(module.embed.weight, weights["embed.weight"])
    assert torch.equal(module.norm.running_var, weights["norm.running_var"])


def test_a_tied_weight_may_be_given_once() -> None:
    weights = state()
    del weights["head.weight"]
    module = Tied()
    fit(module, weights, factory="x:y")
    assert torch.equal(module.head.weight, weights["embed.weight"])


def test_a_prefix_of_every_key_is_dropped_and_told() -> None:
    weights = state()
    weights["head.weight"] = weights["embed.weight"]
    module = Tied()
    remark = fit(module, {f"model.net.{name}": value for name, value in weights.items()}, factory="x:y")
    assert remark == "dropped 'model.net.' before every weight's name"
    assert torch.equal(module.norm.weight, weights["norm.weight"])


def test_one_of_several_modules_is_found_under_its_prefix() -> None:
    weights = state()
    weights["head.weight"] = weights["embed.weight"]
    together = {f"net.{name}": value for name, value in weights.items()} | {"loss.weight": torch.ones(5)}
    module = Tied()
    remark = fit(module, together, factory="x:y")
    assert remark == "took the weights under 'net.', and left 1 aside: loss.weight"
    assert torch.equal(module.norm.weight, weights["norm.weight"])
    with pytest.raises(FormatError, match="several sets"):
        fit(Tied(), together | {f"teacher.{name}": value for name, value in weights.items()}, factory="x:y")


def test_old_checkpoints_without_batch_counters_fit() -> None:
    weights = state()
    del weights["norm.num_batches_tracked"]
    fit(Tied(), weights, factory="x:y")


def test_a_buffer_that_the_module_computes_itself_may_be_given() -> None:
    weights = state() | {"positions": torch.arange(4)}
    weights["head.weight"] = weights["embed.weight"]
    fit(Tied(), weights, factory="x:y")


def test_one_report_names_missing_unexpected_and_reshaped_keys() -> None:
    weights = state()
    weights["norm.weigth"] = weights.pop("norm.weight")
    weights["norm.bias"] = torch.zeros(7)
    weights["extra"] = torch.zeros(1)
    with pytest.raises(FormatError, match="do not fit x:y") as caught:
        fit(Tied(), weights, factory="x:y")
    problem = caught.value.problem
    assert "1 missing (norm.weight, nearest norm.weigth)" in problem
    assert "2 unexpected (norm.weigth, nearest norm.weight; extra)" in problem
    assert "1 of another shape (norm.bias (7,) instead of (3,))" in problem


def test_a_long_report_is_cut() -> None:
    with pytest.raises(FormatError, match=r"missing \(.*; and \d+ more\)"):
        fit(Tied(), {}, factory="x:y")
