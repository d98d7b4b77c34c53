"""Settings of strangers: whatever an adapter_config.json holds, there is a result or one clean error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from safetensors.torch import save_file
from torch import nn

from qtool.errors import QtoolError
from qtool.progress import Silent
from qtool.workflows.diagnose.inspect_adapter import inspect_adapter
from qtool.workflows.lora.merge_weights import merge_lora
from qtool.workflows.lora.request import AdapterSource, MergeRequest

CONFIGS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=3, target_modules=["wide", "embed"], rank_pattern={"wide": 2}),
    "loha": lambda: peft.LoHaConfig(r=3, target_modules=["wide"]),
    "lokr": lambda: peft.LoKrConfig(r=2, target_modules=["wide"]),
    "ia3": lambda: peft.IA3Config(target_modules=["wide"], feedforward_modules=["wide"]),
    "vera": lambda: peft.VeraConfig(r=3, target_modules=["wide"]),
    "oft": lambda: peft.OFTConfig(oft_block_size=3, r=0, target_modules=["wide"]),
    "hra": lambda: peft.HRAConfig(r=2, target_modules=["wide"]),
    "miss": lambda: peft.MissConfig(r=3, target_modules=["wide"], init_weights="bat"),
    "vblora": lambda: peft.VBLoRAConfig(r=2, num_vectors=4, vector_length=3, target_modules=["wide"]),
    "road": lambda: peft.RoadConfig(group_size=2, target_modules=["wide_even"]),
    "gralora": lambda: peft.GraloraConfig(r=3, gralora_k=3, target_modules=["wide"]),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=5, target_modules=["wide"]),
    "waveft": lambda: peft.WaveFTConfig(n_frequency=5, target_modules=["wide"]),
    "tokens": lambda: peft.TrainableTokensConfig(target_modules=["embed"], token_indices=[1, 4]),
}
FIELDS = [
    *("peft_type", "r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out"),
    *("feedforward_modules", "target_parameters", "modules_to_save", "trainable_token_indices", "token_indices"),
    *("block_share", "coft", "eps", "use_cayley_neumann", "num_cayley_neumann_terms", "base_model_name_or_path"),
    *("init_lora_weights", "alora_invocation_tokens", "use_qalora", "layer_replication", "use_dora", "lora_bias"),
    *("apply_GS", "init_weights", "hybrid_r", "topk", "group_size", "variant"),
    *("random_loc_seed", "scaling", "use_idwt", "wavelet_family", "randlora_alpha"),
]
JSON = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-(2**70), 2**70)
    | some.integers(-2, 20)
    | some.floats()
    | some.sampled_from(["wide", "embed", "block", "(", "(a+)+$", ".*", "", "LORA", "IA3", "OFT", "pissa", "weight"])
    | some.text(max_size=6),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
NAMES = some.sampled_from(FIELDS)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(8, 6)
        self.wide = nn.Linear(6, 9)
        self.wide_even = nn.Linear(6, 8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    save_file(Layers().state_dict(), root / "base.safetensors")
    for name, config in CONFIGS.items():
        peft.get_peft_model(Layers(), config()).save_pretrained(root / name)
        (root / name / "whole.json").write_bytes((root / name / "adapter_config.json").read_bytes())
    return {name: root / name for name in CONFIGS}


def try_all(folder: Path) -> bool:
    """Tells whether the adapter can be merged; any other error than a clean one fails the test."""
    base, source = folder.parent / "base.safetensors", AdapterSource(path=folder)
    request = MergeRequest(base=base, adapters=(source,), dry_run=True)
    found = [refusal(lambda: inspect_adapter(folder)), refusal(lambda: merge_lora(request, Silent()))]
    for error in found:
        assert error is None or (error.problem and error.fix and "\n" not in error.problem + error.fix)
    return found == [None, None]


def refusal(step: Callable[[], object]) -> QtoolError | None:
    try:
        step()
    except QtoolError as error:
        return error
    return None


@pytest.mark.parametrize("name", CONFIGS)
def test_fields_may_hold_anything(folders: dict[str, Path], name: str) -> None:
    folder = folders[name]
    whole = json.loads((folder / "whole.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    assert try_all(folder)

    @QUICK
    @given(
        some.dictionaries(some.sampled_from(FIELDS), JSON, min_size=1, max_size=3), some.sets(some.sampled_from(FIELDS))
    )
    def check(changed: dict[str, Any], dropped: set[str]) -> None:
        fields = {key: value for key, value in whole.items() if key not in dropped} | changed
        (folder / "adapter_config.json").write_text(json.dumps(fields))
        try_all(folder)

    check()


def test_bytes_may_be_anything(folders: dict[str, Path]) -> None:
    folder = folders["lora"]
    whole = (folder / "whole.json").read_bytes()

    @QUICK
    @given(some.integers(0, len(whole)), some.integers(0, len(whole)), some.binary(max_size=4))
    def check(start: int, stop: int, put: bytes) -> None:
        (folder / "adapter_config.json").write_bytes(whole[:start] + put + whole[max(start, stop) :])
        try_all(folder)

    check()
    for text in (b"", b"[]", b"null", b"[" * 100_000, b'{"peft_type": NaN}', b"\xff\xfe"):
        (folder / "adapter_config.json").write_bytes(text)
        assert not try_all(folder)
