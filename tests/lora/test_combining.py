"""Ways to combine adapters besides their sum, and the way back."""

from __future__ import annotations

import json
from typing import Any

import peft
import pytest
import torch
from peft.utils.merge_utils import ties
from safetensors.torch import load_file, save_file

NAME = "block.wide.weight"


@pytest.fixture
def pair(train: Any) -> Any:
    one = train(peft.LoraConfig(r=3, target_modules=["wide"]), name="one", seed=5)
    two = train(peft.LoraConfig(r=2, target_modules=["wide"]), name="two", seed=6)
    return one, two


def deltas(pair: Any) -> list[torch.Tensor]:
    base = load_file(pair[0].base)[NAME].double()
    return [item.exact[NAME] - base for item in pair]


def change(merge: Any, pair: Any, *options: str) -> torch.Tensor:
    base = load_file(pair[0].base)[NAME].double()
    merged = merge(pair[0].base, f"{pair[0].folder}=0.8", f"{pair[1].folder}=0.5", *options)
    difference: torch.Tensor = merged[NAME].double() - base
    return difference


def test_ties_is_that_of_the_paper(pair: Any, merge: Any) -> None:
    expected = ties(deltas(pair), torch.tensor([0.8, 0.5]), 0.3)
    torch.testing.assert_close(
        change(merge, pair, "--combine", "ties", "--density", "0.3"), expected, atol=1e-6, rtol=0
    )


def test_dare_keeps_a_share_and_scales_it_up(pair: Any, merge: Any) -> None:
    first, second = deltas(pair)
    drawn = change(merge, pair, "--combine", "dare", "--density", "0.25")
    possible = torch.stack([torch.zeros_like(first), 3.2 * first, 2 * second, 3.2 * first + 2 * second])
    distance, choice = (possible - drawn).abs().min(0)
    assert float(distance.max()) < 1e-5
    share = (choice % 2 == 1).double().mean(), (choice >= 2).double().mean()
    assert all(0.15 < float(value) < 0.35 for value in share)
    assert torch.equal(drawn, change(merge, pair, "--combine", "dare", "--density", "0.25", "--seed", "0"))
    assert not torch.equal(drawn, change(merge, pair, "--combine", "dare", "--density", "0.25", "--seed", "1"))


def test_svd_is_the_nearest_of_its_rank(pair: Any, merge: Any) -> None:
    first, second = deltas(pair)
    total = 0.8 * first + 0.5 * second
    drawn = change(merge, pair, "--combine", "svd", "--rank", "2")
    values = torch.linalg.svdvals(total)
    assert float((drawn - total).norm()) == pytest.approx(float(values[2:].norm()), rel=1e-4)
    assert float(torch.linalg.svdvals(drawn)[2]) < 1e-5


def test_what_was_added_can_be_subtracted_again(pair: Any, merge: Any, tmp_path: Any) -> None:
    base = load_file(pair[0].base)
    merged = merge(pair[0].base, pair[0].folder)
    save_file(merged, tmp_path / "with.safetensors")
    back = merge(tmp_path / "with.safetensors", pair[0].folder, "--unmerge")
    torch.testing.assert_close(back[NAME], base[NAME], atol=2e-7, rtol=1e-6)


@pytest.mark.parametrize("scale", ["1", "40"])
def test_it_is_said_how_near_to_the_base_that_comes(
    pair: Any, merge: Any, command: Any, tmp_path: Any, scale: str
) -> None:
    base = {name: value.half() for name, value in load_file(pair[0].base).items()}
    save_file(base, tmp_path / "half.safetensors")
    save_file(merge(tmp_path / "half.safetensors", pair[0].folder, "--scale", scale), tmp_path / "with.safetensors")
    options = (tmp_path / "with.safetensors", pair[0].folder, "--scale", scale, "--unmerge")
    result = command(*options, "-o", tmp_path / "back.safetensors", "--json")
    assert result.exit_code == 0, result.output
    (target,) = json.loads(result.stdout)["targets"]
    back = load_file(tmp_path / "back.safetensors")[NAME].double()
    error = float((back - base[NAME].double()).norm() / base[NAME].double().norm())
    # Roundings add up in all directions: a bound, and no far one.
    assert error / 1.2 < target["unmerge_error"] < 3 * error
    assert "up to rounding" in command(*options, "--dry-run").stdout


def test_a_base_that_drowned_in_rounding_does_not_come_back(pair: Any, merge: Any, refused: Any, tmp_path: Any) -> None:
    base = {name: value.bfloat16() for name, value in load_file(pair[0].base).items()}
    save_file(base, tmp_path / "half.safetensors")
    save_file(merge(tmp_path / "half.safetensors", pair[0].folder, "--scale", "300"), tmp_path / "with.safetensors")
    words = refused(tmp_path / "with.safetensors", pair[0].folder, "--scale", "300", "--unmerge")
    assert f"{NAME} would be" in words
    assert "too little of the base" in words


def test_options_that_say_nothing_are_refused(pair: Any, refused: Any, train: Any) -> None:
    base, folder = pair[0].base, pair[0].folder
    assert "--density has no effect without --combine" in refused(base, folder, "--density", "0.5")
    assert "--rank has no effect with --combine ties" in refused(base, folder, "--combine", "ties", "--rank", "2")
    assert "--density must be above 0 and at most 1" in refused(base, folder, "--combine", "ties", "--density", "0")
    assert "exclude each other" in refused(base, folder, "--combine", "ties", "--unmerge")
    scaled = train(peft.IA3Config(target_modules=["wide"], feedforward_modules=[]), name="scaled")
    assert "does not determine the original" in refused(base, scaled.folder, "--unmerge")
    assert "cannot combine" in refused(base, scaled.folder, "--combine", "ties")
