"""The kinds that change a weight in ways of their own, against what PEFT merges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from qtool.cli.app import app

NEAR = 1e-6
LINEAR = ["wide", "square", "head"]

CONFIGS: dict[str, tuple[str, Any]] = {
    "ln": ("LN tuning", peft.LNTuningConfig(target_modules=["norm"])),
    "hra": ("HRA", peft.HRAConfig(r=4, target_modules=[*LINEAR, "conv", "point"])),
    "hra-orthogonal": ("HRA", peft.HRAConfig(r=3, target_modules=[*LINEAR, "conv"], apply_GS=True)),
    "miss": ("MiSS", peft.MissConfig(r=6, target_modules=LINEAR)),
    "miss-rest": ("MiSS", peft.MissConfig(r=5, target_modules=LINEAR)),
    "miss-mini": ("MiSS", peft.MissConfig(r=6, mini_r=9, target_modules=["wide", "square"], init_weights="mini")),
    "miss-bat": ("MiSS", peft.MissConfig(r=6, target_modules=["wide", "square"], init_weights="bat")),
    "vblora": ("VB-LoRA", peft.VBLoRAConfig(r=3, num_vectors=10, vector_length=6, target_modules=["wide", "square"])),
    "vblora-chosen": (
        "VB-LoRA",
        peft.VBLoRAConfig(
            r=3, num_vectors=10, vector_length=6, topk=3, target_modules=["wide"], save_only_topk_weights=True
        ),
    ),
    "vblora-conv1d": (
        "VB-LoRA",
        peft.VBLoRAConfig(r=2, num_vectors=9, vector_length=6, target_modules=["flipped"], fan_in_fan_out=True),
    ),
    "delora": ("DeLoRA", peft.DeloraConfig(r=4, target_modules=LINEAR, rank_pattern={"square": 2})),
    "adalora": ("AdaLoRA", peft.AdaLoraConfig(init_r=5, lora_alpha=6, total_step=9, target_modules=[*LINEAR, "conv"])),
    "adalora-conv1d": (
        "AdaLoRA",
        peft.AdaLoraConfig(init_r=5, total_step=9, target_modules=["flipped"], fan_in_fan_out=True),
    ),
    "c3a": ("C3A", peft.C3AConfig(block_size=6, target_modules=["wide", "square"])),
    "road-1": ("RoAd", peft.RoadConfig(variant="road_1", group_size=6, target_modules=["wide", "square"])),
    "road-2": ("RoAd", peft.RoadConfig(variant="road_2", group_size=2, target_modules=["wide", "square"])),
    "road-4": ("RoAd", peft.RoadConfig(variant="road_4", group_size=6, target_modules=["wide", "square"])),
    "gralora": ("GraLoRA", peft.GraloraConfig(r=4, alpha=6, target_modules=["wide", "square"])),
    "gralora-hybrid": (
        "GraLoRA",
        peft.GraloraConfig(r=6, alpha=6, gralora_k=3, hybrid_r=2, target_modules=["wide", "square"]),
    ),
    "gralora-conv1d": ("GraLoRA", peft.GraloraConfig(r=4, alpha=6, target_modules=["flipped"], fan_in_fan_out=True)),
    "shira": ("SHiRA", peft.ShiraConfig(r=2, target_modules=["wide", "square"])),
    "fourierft": ("FourierFT", peft.FourierFTConfig(n_frequency=40, target_modules=LINEAR)),
    "fourierft-conv1d": (
        "FourierFT",
        peft.FourierFTConfig(n_frequency=40, scaling=30.0, target_modules=["flipped"], fan_in_fan_out=True),
    ),
    "waveft": ("WaveFT", peft.WaveFTConfig(n_frequency=60, target_modules=LINEAR)),
    "waveft-conv1d": (
        "WaveFT",
        peft.WaveFTConfig(n_frequency=60, random_loc_seed=5, target_modules=["flipped"], fan_in_fan_out=True),
    ),
    "waveft-direct": ("WaveFT", peft.WaveFTConfig(n_frequency=60, target_modules=LINEAR, use_idwt=False)),
    "boft": ("BOFT", peft.BOFTConfig(boft_block_size=6, target_modules=[*LINEAR, "conv"])),
    "boft-count": ("BOFT", peft.BOFTConfig(boft_block_num=2, boft_block_size=0, target_modules=["wide", "point"])),
    "randlora": ("RandLoRA", peft.RandLoraConfig(r=4, target_modules=LINEAR)),
    "randlora-conv1d": ("RandLoRA", peft.RandLoraConfig(r=4, target_modules=["flipped"], fan_in_fan_out=True)),
    "hira": ("HiRA", peft.HiraConfig(r=3, target_modules=[*LINEAR, "conv", "point", "wave", "embed"])),
    "hira-conv1d": ("HiRA", peft.HiraConfig(r=3, target_modules=["flipped"], fan_in_fan_out=True)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_becomes_what_peft_makes_of_it(train: Any, merge: Any, distance: Any, name: str) -> None:
    kind, config = CONFIGS[name]
    trained = train(config)
    assert distance(merge(trained.base, trained.folder), trained.merged) < NEAR
    described = CliRunner().invoke(app, ["inspect", str(trained.folder), "--json"])
    assert json.loads(described.stdout)["kind"] == kind


def test_modules_that_adalora_left_no_rank_stay(train: Any, merge: Any) -> None:
    trained = train(peft.AdaLoraConfig(init_r=4, total_step=9, target_modules=["wide", "head"]))
    path = trained.folder / "adapter_model.safetensors"
    kept = {
        name: value if ".wide." in name else value[:0] if not name.endswith("lora_B") else value[:, :0].contiguous()
        for name, value in load_file(path).items()
    }
    save_file(kept, path)
    merged, base = merge(trained.base, trained.folder), load_file(trained.base)
    changed = [name for name, value in merged.items() if not value.equal(base[name])]
    assert changed == ["block.wide.weight"]


def edited(folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(edit(load_file(path)), path)


def test_another_wavelet_is_refused(train: Any, refused: Any) -> None:
    trained = train(peft.WaveFTConfig(n_frequency=9, wavelet_family="db2", target_modules=["wide"]))
    assert "the wavelet db2" in refused(trained.base, trained.folder, "--dry-run")


def test_several_butterfly_factors_are_refused(train: Any, refused: Any) -> None:
    trained = train(peft.BOFTConfig(boft_block_size=6, target_modules=["wide"]))
    edited(
        trained.folder,
        lambda tensors: {
            name: torch.cat([value, value]) if name.endswith("boft_R") else value for name, value in tensors.items()
        },
    )
    assert "2 butterfly factors" in refused(trained.base, trained.folder, "--dry-run")


def test_bases_that_were_not_saved_are_missed(train: Any, refused: Any) -> None:
    trained = train(peft.RandLoraConfig(r=4, target_modules=["wide"], save_projection=False))
    assert "RandLoRA without its bases" in refused(trained.base, trained.folder, "--dry-run")


def test_places_outside_of_the_weight_are_refused(train: Any, refused: Any) -> None:
    trained = train(peft.ShiraConfig(r=2, target_modules=["wide"]))
    edited(
        trained.folder,
        lambda tensors: {
            name: value + 18 if name.endswith("shira_indices") else value for name, value in tensors.items()
        },
    )
    assert "are out of range" in refused(trained.base, trained.folder, "--dry-run")


DAMAGED = {
    "delora_B": peft.DeloraConfig(r=4, target_modules=["wide"]),
    "delora_w_norm": peft.DeloraConfig(r=4, target_modules=["wide"]),
    "randlora_A": peft.RandLoraConfig(r=4, target_modules=["wide"]),
    "randlora_gamma": peft.RandLoraConfig(r=4, target_modules=["wide"]),
    "lora_E": peft.AdaLoraConfig(init_r=4, total_step=9, target_modules=["wide"]),
    "vblora_logits_A": peft.VBLoRAConfig(r=3, num_vectors=9, vector_length=6, target_modules=["wide"]),
    "c3a_kernel": peft.C3AConfig(block_size=6, target_modules=["wide"]),
    "road_theta": peft.RoadConfig(group_size=6, target_modules=["wide"]),
    "gralora_B": peft.GraloraConfig(r=4, target_modules=["wide"]),
    "boft_R": peft.BOFTConfig(boft_block_size=6, target_modules=["wide"]),
    "hra_u": peft.HRAConfig(r=4, target_modules=["wide"]),
    "miss_block": peft.MissConfig(r=6, target_modules=["wide"]),
    "hira_A": peft.HiraConfig(r=3, target_modules=["wide"]),
    "shira_weight": peft.ShiraConfig(r=2, target_modules=["wide"]),
}


@pytest.mark.parametrize("role", DAMAGED)
@pytest.mark.parametrize("shape", [(), (5,), (3, 5), (2, 3, 5)], ids=str)
def test_tensors_of_another_shape_are_refused(train: Any, refused: Any, role: str, shape: tuple[int, ...]) -> None:
    trained = train(DAMAGED[role])
    edited(
        trained.folder,
        lambda tensors: {name: torch.ones(shape) if name.endswith(role) else value for name, value in tensors.items()},
    )
    assert "does not fit" in refused(trained.base, trained.folder, "--dry-run")
