"""Where results go, how several adapters add up, and what rounding does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

LAYERS = ["wide", "head", "conv"]


@pytest.fixture
def trained(train: Any) -> Any:
    return train(peft.LoraConfig(r=3, lora_alpha=5, target_modules=LAYERS))


def split(base: Path, folder: Path) -> Path:
    """Stores the tensors of ``base`` in two files with an index."""
    folder.mkdir()
    state = load_file(base)
    places = {name: f"model-{1 + number % 2}.safetensors" for number, name in enumerate(sorted(state))}
    for file in set(places.values()):
        save_file({name: state[name] for name, place in places.items() if place == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_several_files_stay_several_files(trained: Any, command: Any, distance: Any, tmp_path: Path) -> None:
    index = split(trained.base, tmp_path / "parts")
    result = command(index, trained.folder, "-o", tmp_path / "out.safetensors.index.json")
    assert result.exit_code == 0, result.output
    places = json.loads((tmp_path / "out.safetensors.index.json").read_text())["weight_map"]
    assert sorted(set(places.values())) == ["out-00001-of-00002.safetensors", "out-00002-of-00002.safetensors"]
    merged = {name: load_file(tmp_path / file)[name] for name, file in places.items()}
    assert distance(merged, trained.merged) < 1e-6


def test_a_folder_becomes_a_folder_with_all_that_makes_it_a_model(
    trained: Any, command: Any, distance: Any, tmp_path: Path
) -> None:
    split(trained.base, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    result = command(tmp_path / "model", trained.folder, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    merged = Path(report["output"])
    assert merged == tmp_path / "model-merged"
    assert (merged / "config.json").is_file()
    files = sorted(merged.glob("*.safetensors"))
    assert distance({k: v for file in files for k, v in load_file(file).items()}, trained.merged) < 1e-6
    assert report["output_bytes"] == sum(file.stat().st_size for file in files)
    assert command(tmp_path / "model", trained.folder).exit_code == 2
    assert command(tmp_path / "model", trained.folder, "--force").exit_code == 0


def test_a_merge_that_fails_leaves_no_folder(trained: Any, refused: Any, tmp_path: Path) -> None:
    split(trained.base, tmp_path / "model")
    for file in (tmp_path / "model").glob("*.safetensors"):
        save_file({name: value.half() for name, value in load_file(file).items()}, file)
    refused(tmp_path / "model", trained.folder, "--scale", "1e6", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_add_up_with_their_weights(train: Any, merge: Any, distance: Any) -> None:
    one = train(peft.LoraConfig(r=3, target_modules=LAYERS), name="one", seed=5)
    two = train(peft.LoraConfig(r=2, lora_alpha=3, target_modules=["wide", "point"]), name="two", seed=6)
    base = load_file(one.base)
    merged = merge(one.base, f"{one.folder}=0.7", f"{two.folder}=-0.3", "--scale", "2")
    expected = {
        name: value.double() + 1.4 * (one.exact[name] - value) - 0.6 * (two.exact[name] - value)
        for name, value in base.items()
    }
    assert distance(merged, expected) < 1e-7


def test_patterns_choose_modules(trained: Any, merge: Any) -> None:
    base = load_file(trained.base)
    for options in (("--only", "block.*"), ("--exclude", "head")):
        merged = merge(trained.base, trained.folder, *options)
        changed = {name for name in base if not torch.equal(merged[name], base[name])}
        assert changed == {"block.wide.weight", "block.conv.weight"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(trained: Any, merge: Any, net: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    base = {name: value.to(dtype) for name, value in load_file(trained.base).items()}
    save_file(base, tmp_path / "half.safetensors")
    merged = merge(tmp_path / "half.safetensors", trained.folder)
    net.load_state_dict(base)
    module = peft.PeftModel.from_pretrained(net.to(dtype), trained.folder).merge_and_unload()
    exact, of_peft = {}, module.state_dict()
    for name, value in load_file(trained.base).items():
        exact[name] = base[name].double() + (trained.exact[name] - value.double())
    for name in ("block.wide.weight", "head.weight", "block.conv.weight"):
        assert merged[name].dtype == dtype
        # The same numbers as rounding the exact sum gives, and so no farther from it than PEFT.
        assert torch.equal(merged[name], exact[name].to(dtype))
        error, other = ((state[name].double() - exact[name]).norm() for state in (merged, of_peft))
        assert error <= other


def test_tied_tensors_stay_one(trained: Any, merge: Any, tmp_path: Path) -> None:
    state = load_file(trained.base)
    state["tail.weight"], state["copy.weight"] = state["head.weight"], state["embed.weight"]
    torch.save(state, tmp_path / "tied.pth")
    merged = merge(tmp_path / "tied.pth", trained.folder, output="merged.pth")
    assert merged["copy.weight"].data_ptr() == merged["embed.weight"].data_ptr()
    # The adapter is around one of the two alone.
    assert torch.equal(merged["tail.weight"], state["tail.weight"])
    assert not torch.equal(merged["head.weight"], state["tail.weight"])


def test_names_of_the_base_may_begin_in_another_way(trained: Any, merge: Any, distance: Any, tmp_path: Path) -> None:
    state = {f"model.{name}": value for name, value in load_file(trained.base).items()}
    save_file(state, tmp_path / "longer.safetensors")
    merged = merge(tmp_path / "longer.safetensors", trained.folder)
    assert distance({name.removeprefix("model."): value for name, value in merged.items()}, trained.merged) < 1e-6


def test_a_dry_run_measures_and_writes_nothing(trained: Any, command: Any, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = command(trained.base, trained.folder, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert sorted(tmp_path.rglob("*")) == before
    base = load_file(trained.base)
    assert {target["weight"] for target in report["targets"]} == {
        "block.wide.weight",
        "block.conv.weight",
        "head.weight",
    }
    assert report["untouched"] == len(base) - 3
    assert set(report["untouched_tensors"]) == set(base) - {target["weight"] for target in report["targets"]}
    for target in report["targets"]:
        name = target["weight"]
        change = (trained.exact[name] - base[name].double()).norm() / base[name].double().norm()
        assert target["relative_change"] == pytest.approx(float(change), rel=1e-6)
        assert target["ranks"] == [3]
        assert target["scales"] == [pytest.approx(5 / 3)]
        assert 0 < target["rounding_error"] < 1e-7
    assert "would change" in command(trained.base, trained.folder, "--dry-run").stdout


def test_a_result_that_exists_is_replaced_only_when_asked(trained: Any, refused: Any, tmp_path: Path) -> None:
    (tmp_path / "there.safetensors").write_text("kept")
    assert "exists already" in refused(trained.base, trained.folder, "-o", tmp_path / "there.safetensors")
    assert "replace the base" in refused(trained.base, trained.folder, "-o", trained.base, "--force")
    assert "no suffix" in refused(trained.base, trained.folder, "-o", tmp_path / "there.txt")
    assert (tmp_path / "there.safetensors").read_text() == "kept"
