import argparse
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qtool.formats.base import Weights
from qtool.formats.errors import FormatError
from qtool.formats.torch.state_dicts import find_state_dict
from qtool.formats.torch.torch_checkpoint import TorchCheckpoint

WEIGHT = torch.arange(6.0).reshape(2, 3)


class Attack:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


def read(path: Path, stored: Any, *, legacy: bool = False) -> Weights:
    torch.save(stored, path, _use_new_zipfile_serialization=not legacy)
    return TorchCheckpoint().read(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "stored",
    [
        {"w": WEIGHT},
        {"state_dict": {"w": WEIGHT}, "epoch": 3},
        {"model": {"w": WEIGHT}, "optimizer": {"state": {0: {"momentum": torch.ones(2)}}}},
        {"model_state_dict": {"module.w": WEIGHT}},
        {"state_dict": {"module._orig_mod.w": WEIGHT}},
        {"state_dict": {"_orig_mod.module.w": WEIGHT}},
        {"ema": {"shadow": {"w": WEIGHT}}},
        {"anything": {"w": WEIGHT}, "lr_scheduler": {"x": torch.ones(1)}},
        {"w": torch.nn.Parameter(WEIGHT), "step": 5},
        {"student": {"w": WEIGHT}, "step": torch.tensor(3), "losses": torch.ones(2)},
        {"ema": {"ema_model": {"w": WEIGHT}, "initted": torch.tensor(True)}, "model": {"v": WEIGHT}},
        {"model": {"student": {"w": WEIGHT}, "scale": torch.ones(1)}, "epoch": torch.tensor(2)},
        {"ema": {"decay": 0.9, "shadow_params": [WEIGHT]}, "model": {"w": WEIGHT}},
    ],
)
def test_the_state_dict_is_found_wherever_it_is(tmp_path: Path, stored: Any, legacy: bool) -> None:
    weights = read(tmp_path / "m.pth", stored, legacy=legacy)
    assert list(weights.tensors) == ["w"]
    assert torch.equal(weights.tensors["w"], WEIGHT)
    assert not weights.tensors["w"].requires_grad


def test_averaged_weights_win_over_raw_ones(tmp_path: Path) -> None:
    weights = read(tmp_path / "m.pth", {"state_dict": {"w": WEIGHT}, "state_dict_ema": {"w": WEIGHT + 1}})
    assert torch.equal(weights.tensors["w"], WEIGHT + 1)
    assert "state_dict_ema" in weights.source


def test_tensors_beside_the_weights_are_not_taken_for_them(tmp_path: Path) -> None:
    torch.save({"model_state_dict": {"a.w": torch.ones(2)}, "loss": torch.tensor(0.3), "epoch": 3}, tmp_path / "a.pth")
    assert set(TorchCheckpoint().read(tmp_path / "a.pth").tensors) == {"a.w"}


def test_a_name_that_only_some_keys_begin_with_stays(tmp_path: Path) -> None:
    weights = read(tmp_path / "m.pth", {"module.w": WEIGHT, "head.w": WEIGHT})
    assert list(weights.tensors) == ["module.w", "head.w"]


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    assert "epoch" in read(tmp_path / "m.pth", {"w": WEIGHT, "epoch": 3}).source


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ([WEIGHT], "holds a list"),
        (WEIGHT, "holds a Tensor"),
        ({}, "empty dict"),
        ({"epoch": 3}, "its keys: epoch"),
        ({"left": {"w": WEIGHT}, "right": {"w": WEIGHT}}, "several dictionaries of tensors: left, right"),
        ({"left": {"w": WEIGHT}, "right": {"w": WEIGHT}, "step": torch.tensor(3)}, "several dictionaries"),
        ({"model": {"left": {"w": WEIGHT}, "right": {"w": WEIGHT}, "scale": torch.ones(1)}}, r"\['model'\]\['left'\]"),
        ({"_orig_mod.w": WEIGHT, "w": WEIGHT}, "both with and without"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, stored: Any, said: str) -> None:
    with pytest.raises(FormatError) as caught:
        read(tmp_path / "m.pth", stored)
    assert re.search(said, str(caught.value))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_module_is_refused_with_the_way_out(tmp_path: Path, legacy: bool) -> None:
    with pytest.raises(FormatError, match=r"torch\.nn\.modules") as caught:
        read(tmp_path / "m.pth", torch.nn.Sequential(torch.nn.Linear(2, 2)), legacy=legacy)
    assert "state_dict()" in caught.value.fix


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_never_runs(tmp_path: Path, legacy: bool) -> None:
    witness = tmp_path / "ran"
    with pytest.raises(FormatError, match="as an attack does"):
        read(tmp_path / "m.pth", {"w": WEIGHT, "extra": Attack(witness)}, legacy=legacy)
    assert not witness.exists()
    torch.load(tmp_path / "m.pth", weights_only=False)
    assert witness.exists(), "the attack is a real one"


def test_a_checkpoint_with_other_objects_names_them(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"argparse\.Namespace"):
        read(tmp_path / "m.pth", {"state_dict": {"w": WEIGHT}, "args": argparse.Namespace(lr=1)})


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_cut_legacy_file_is_called_damaged(tmp_path: Path, share: float) -> None:
    path = tmp_path / "m.pth"
    torch.save({"w": torch.zeros(100)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(FormatError, match="damaged torch checkpoint"):
        TorchCheckpoint().read(path)


def test_the_same_weights_give_the_same_bytes_under_any_name(tmp_path: Path) -> None:
    weights = Weights(tensors={"w": WEIGHT, "b": torch.ones(2)}, metadata={}, source="test")
    TorchCheckpoint().write(weights, tmp_path / "one.pth")
    TorchCheckpoint().write(weights, tmp_path / "another-name.pth")
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "another-name.pth").read_bytes()


def test_a_view_is_written_without_the_memory_around_it(tmp_path: Path) -> None:
    large = torch.zeros(1_000_000)
    TorchCheckpoint().write(Weights(tensors={"w": large[:10]}, metadata={}, source="test"), tmp_path / "m.pth")
    assert (tmp_path / "m.pth").stat().st_size < 10_000


def test_tied_tensors_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    tied = torch.randn(1000)
    weights = Weights(tensors={"embed": tied, "head": tied}, metadata={}, source="test")
    TorchCheckpoint().write(weights, tmp_path / "m.pth")
    assert (tmp_path / "m.pth").stat().st_size < 6_000
    again = torch.load(tmp_path / "m.pth", weights_only=True)
    assert again["embed"].data_ptr() == again["head"].data_ptr()


@pytest.mark.parametrize(
    ("stored", "aside"),
    [
        ({"backbone": {"w": WEIGHT}, "head": {"v": WEIGHT, "b": WEIGHT}}, "head (2 tensors)"),
        ({"w": WEIGHT, "extra": {"v": torch.ones(2)}}, "extra (a tensor)"),
        ({"model": {"w": WEIGHT}, "queue": WEIGHT}, "queue (a tensor)"),
        ({"model": {"w": WEIGHT}, "ema": {"shadow_params": [WEIGHT, WEIGHT]}}, "ema (2 tensors)"),
    ],
)
def test_tensors_that_are_left_aside_are_counted(tmp_path: Path, stored: Any, aside: str) -> None:
    weights = read(tmp_path / "m.pth", stored)
    assert list(weights.tensors) == ["w"]
    assert aside in weights.source


leaves = st.integers(0, 3).map(lambda size: torch.ones(size))
names = st.sampled_from(["model", "ema", "encoder", "net", "w", "step", "head", "x.y"])
checkpoints = st.recursive(
    st.dictionaries(names, leaves | st.integers(), max_size=3),
    lambda inner: st.dictionaries(names, inner | leaves, max_size=3),
    max_leaves=6,
)


@given(stored=checkpoints)
def test_every_tensor_is_taken_or_counted(stored: Any) -> None:
    def count(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return 1
        return sum(count(inner) for inner in value.values()) if isinstance(value, dict) else 0

    try:
        found = find_state_dict(stored, "m.pth")
    except FormatError:
        return
    aside = re.findall(r"\((?:(a)|(\d+)) tensors?\)", found.source)
    more = " more" in found.source
    told = len(found.tensors) + sum(1 if one else int(several) for one, several in aside)
    assert told == count(stored) or (more and told < count(stored))
