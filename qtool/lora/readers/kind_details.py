"""Reads the fields of ``adapter_config.json`` that are specific to one kind of adapter.

Source: https://huggingface.co/docs/peft/package_reference: the configurations of the kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_STEERS = "it adds to the model's inputs, not to its weights"
_CHOOSES = "it mixes adapters separately for every input"

# The reasons why kinds cannot be merged, by their names in the file.
NO_MERGED_FORM: Mapping[str, str] = {
    "PROMPT_TUNING": _STEERS,
    "MULTITASK_PROMPT_TUNING": _STEERS,
    "P_TUNING": _STEERS,
    "PREFIX_TUNING": _STEERS,
    "CPT": _STEERS,
    "CARTRIDGE": _STEERS,
    "ADAPTION_PROMPT": "it adds attention to trained prompts, which is not a change of weights",
    "XLORA": _CHOOSES,
    "POLY": _CHOOSES,
    "BONE": "it is the former name of MiSS, with other names of tensors; convert it to MiSS with PEFT first",
}

# Default factors by kind.
_SCALINGS: Mapping[str, float] = {"FOURIERFT": 150, "WAVEFT": 25}


@dataclass(frozen=True, slots=True, kw_only=True)
class KindDetails:
    """Settings of single kinds besides the rank and the alpha.

    Attributes:
        orthogonal: of HRA: whether its vectors are made orthogonal first.
        form: of MiSS: ``"bat"``, ``"mini"``, or another for the plain one; of RoAd: its variant, such as ``"road_1"``.
        chosen: of VB-LoRA: how many vectors are mixed.
        group: of RoAd: the length of the groups whose halves are paired.
        seed: of FourierFT and WaveFT: the random seed of their indices.
        scaling: of FourierFT and WaveFT: the factor.
        wavelet: of WaveFT: its name; None where the values are those of the weight itself.
    """

    orthogonal: bool = False
    form: str = ""
    chosen: int = 0
    group: int = 0
    seed: int = 777
    scaling: float = 1.0
    wavelet: str | None = None


def details_from_peft(fields: Mapping[str, Any]) -> KindDetails:
    """Returns the details of validated fields; defaults are those of PEFT."""
    kind, seed, scaling = fields.get("peft_type"), fields.get("random_loc_seed"), fields.get("scaling")
    form = fields.get("init_weights") if kind == "MISS" else fields.get("variant") or "road_1"
    return KindDetails(
        orthogonal=bool(fields.get("apply_GS")),
        form=form if isinstance(form, str) else "",
        chosen=int(fields.get("topk") or 2),
        group=int(fields.get("group_size") or 64),
        seed=777 if seed is None else int(seed),
        scaling=float(_SCALINGS.get(str(kind), 1) if scaling is None else scaling),
        wavelet=str(fields.get("wavelet_family") or "db1") if fields.get("use_idwt", True) else None,
    )
