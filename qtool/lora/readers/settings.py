"""Reads PEFT's ``adapter_config.json``, and rejects adapters that cannot be merged exactly.

Source: https://huggingface.co/docs/peft/package_reference/lora: the fields of the configurations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qtool.errors import InputError
from qtool.lora.readers.field_forms import check_fields
from qtool.lora.readers.kind_details import NO_MERGED_FORM, KindDetails, details_from_peft

_Value = TypeVar("_Value")

# The supported kinds, by their name in the file.
KINDS: Mapping[str, str] = {
    "LORA": "LoRA",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "IA3": "IA3",
    "VERA": "VeRA",
    "OFT": "OFT",
    "TRAINABLE_TOKENS": "trainable tokens",
    "LN_TUNING": "LN tuning",
    "HRA": "HRA",
    "MISS": "MiSS",
    "VBLORA": "VB-LoRA",
    "DELORA": "DeLoRA",
    "ADALORA": "AdaLoRA",
    "C3A": "C3A",
    "ROAD": "RoAd",
    "GRALORA": "GraLoRA",
    "SHIRA": "SHiRA",
    "FOURIERFT": "FourierFT",
    "WAVEFT": "WaveFT",
    "BOFT": "BOFT",
    "RANDLORA": "RandLoRA",
    "HIRA": "HiRA",
}
# Kinds with a rank in the settings; for AdaLoRA it is the target rank.
_RANKED = ("LORA", "LOHA", "LOKR", "VERA", "HRA", "MISS", "VBLORA", "DELORA", "GRALORA", "RANDLORA", "HIRA")
# Kinds with an alpha, by the field's name, and its default.
_ALPHA_FIELDS: Mapping[str, tuple[str, float]] = {
    "LORA": ("lora_alpha", 8),
    "ADALORA": ("lora_alpha", 8),
    "LOHA": ("alpha", 8),
    "LOKR": ("alpha", 8),
    "GRALORA": ("alpha", 64),
    "RANDLORA": ("randlora_alpha", 640),
}
# Fields that make the layer compute something other than a single weight, or change the base.
_NO_WEIGHT: Mapping[str, str] = {
    "alora_invocation_tokens": "it applies to some tokens only (aLoRA)",
    "use_qalora": "it sums groups of inputs first (QA-LoRA)",
    "layer_replication": "it repeats layers of the base",
    "use_bdlora": "it is split over several devices (BD-LoRA)",
    "arrow_config": "it selects adapters at run time (Arrow)",
    "kasa_config": "it changes the base weights before training (KaSA)",
    "monteclora_config": "it draws its weights at random (MonteCLoRA)",
}
# These subtract from the base weights when training begins; the adapter fits only the remaining weights.
_CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """How OFT computes rotations from its numbers.

    Attributes:
        block_share: whether all blocks share one.
        neumann_terms: terms of the series that approximates the inverse; None for the exact inverse.
        constraint: largest distance from the identity (COFT); None without limit.
    """

    block_share: bool = False
    neumann_terms: int | None = 5
    constraint: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """The configuration of an adapter.

    Attributes:
        kind: a value of ``KINDS``.
        base_model: the name of the model that it was trained on, where it is known.
        rank: of its matrices, where no pattern overrides it.
        alpha: the numerator of the scale, where no pattern overrides it; None where the scale is always 1.
        rank_patterns: ranks of single modules, by regular expressions for the ends of their names.
        alpha_patterns: alphas of single modules, by regular expressions for the ends of their names.
        root_scale: whether the scale is divided by the root of the rank (rsLoRA).
        fan_in_fan_out: whether weights are stored with the inputs first, as Conv1D of transformers does.
        feedforward: of IA3: the ends of the names of modules whose inputs are scaled, or one regular expression.
        target_parameters: parameters that are trained by name, not as the weight of their module.
        saved_modules: modules that were trained whole, by the ends of their names; the base need not have them.
        keeps_ties: whether a changed tensor stays tied.
        token_rows: the rows that trainable tokens replace, by the end of the embedding's name; "" for any.
        rotation: of OFT.
        details: of the kinds with specific fields.
    """

    kind: str
    base_model: str | None = None
    rank: int | None = None
    alpha: float | None = None
    rank_patterns: Mapping[str, int] = field(default_factory=dict)
    alpha_patterns: Mapping[str, float] = field(default_factory=dict)
    root_scale: bool = False
    fan_in_fan_out: bool = False
    feedforward: tuple[str, ...] | str = ()
    target_parameters: tuple[str, ...] = ()
    saved_modules: tuple[str, ...] = ()
    keeps_ties: bool = False
    token_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rotation: Rotation = Rotation()
    details: KindDetails = field(default_factory=KindDetails)

    def rank_of(self, module: str) -> int | None:
        """Returns the rank of a module."""
        return _first_match(self.rank_patterns, module, self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """Returns alpha over the rank, or over its root; 1 without alpha."""
        alpha = _first_match(self.alpha_patterns, module, self.alpha)
        if alpha is None:
            return 1.0
        return alpha / math.sqrt(rank) if self.root_scale else alpha / rank

    def is_feedforward(self, module: str) -> bool:
        """Returns whether IA3 scales the inputs of a module, not its outputs."""
        if isinstance(self.feedforward, str):
            return re.fullmatch(self.feedforward, module) is not None
        return module.endswith(self.feedforward)

    def parameters_of(self, module: str) -> tuple[str, ...]:
        """Returns the names of the parameters of a module that are trained by name."""
        found = [name.rpartition(".") for name in self.target_parameters]
        return tuple(sorted({parameter for owner, _, parameter in found if _ends_with(module, owner)}))

    def saves(self, parameter: str) -> bool:
        """Returns whether a parameter belongs to a module that was trained whole."""
        return any(f".{name}." in f".{parameter}" for name in self.saved_modules)

    def rows_of(self, module: str) -> tuple[int, ...] | None:
        """Returns the rows of an embedding that were trained; None where the settings name none."""
        return next((rows for name, rows in self.token_rows.items() if _ends_with(module, name)), None)


def _ends_with(module: str, name: str) -> bool:
    return not name or f".{module}".endswith(f".{name}")


def _first_match(patterns: Mapping[str, _Value], module: str, otherwise: _Value) -> _Value:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def settings_from_peft(fields: Mapping[str, Any], where: str) -> AdapterSettings:
    """Reads the fields of ``adapter_config.json``.

    Raises:
        InputError: a field is missing or of the wrong type, or the adapter cannot be merged exactly.
    """
    kind = str(fields.get("peft_type"))
    if kind not in KINDS:
        reason = NO_MERGED_FORM.get(kind)
        raise InputError(
            f"{where} is an adapter of the kind {kind}, which cannot be merged exactly"
            + (f": {reason}" if reason else ""),
            fix=f"use one of {', '.join(KINDS.values())}, or merge it with the library that trained it",
        )
    _check_mergeable(fields, where)
    if kind == "ADALORA":
        # There the pattern gives the kept columns; the others were not saved.
        fields = {name: value for name, value in fields.items() if name != "rank_pattern"}
    check_fields(fields, where)
    feedforward = fields.get("feedforward_modules") or ()
    neumann = int(fields.get("num_cayley_neumann_terms") or 5) if fields.get("use_cayley_neumann", False) else None
    return AdapterSettings(
        kind=KINDS[kind],
        base_model=fields.get("base_model_name_or_path") or None,
        rank=_rank(fields, where) + int(fields.get("hybrid_r") or 0) if kind in _RANKED else None,
        alpha=_alpha(fields, kind),
        rank_patterns=fields.get("rank_pattern") or {},
        alpha_patterns=fields.get("alpha_pattern") or {},
        root_scale=bool(fields.get("use_rslora")),
        fan_in_fan_out=bool(fields.get("fan_in_fan_out")),
        feedforward=feedforward if isinstance(feedforward, str) else tuple(feedforward),
        target_parameters=tuple(fields.get("target_parameters") or ()),
        saved_modules=tuple(fields.get("modules_to_save") or ()),
        keeps_ties=bool(fields.get("ensure_weight_tying")),
        token_rows=_token_rows(fields, kind),
        rotation=Rotation(
            block_share=bool(fields.get("block_share")),
            neumann_terms=neumann,
            constraint=float(fields.get("eps") or 6e-5) if fields.get("coft") else None,
        ),
        details=details_from_peft(fields),
    )


def _check_mergeable(fields: Mapping[str, Any], where: str) -> None:
    for name, reason in _NO_WEIGHT.items():
        if fields.get(name):
            raise InputError(
                f"{where} cannot be merged exactly: {reason}", fix=f"train without {name}, or run it with PEFT"
            )
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        raise InputError(
            f"{where} was started with {start}, which changed the base weights; it does not fit the original ones",
            fix="save it with path_initial_model_for_weight_conversion, which turns it into plain LoRA",
        )


def _rank(fields: Mapping[str, Any], where: str) -> int:
    rank = fields.get("r")
    if not rank:
        raise InputError(f"{where} gives no rank r", fix="save the adapter again")
    return int(rank)


def _alpha(fields: Mapping[str, Any], kind: str) -> float | None:
    if kind not in _ALPHA_FIELDS:
        return None
    name, default = _ALPHA_FIELDS[kind]
    alpha = fields.get(name)
    return float(default if alpha is None else alpha)


def _token_rows(fields: Mapping[str, Any], kind: str) -> dict[str, tuple[int, ...]]:
    rows = fields.get("trainable_token_indices") if kind == "LORA" else fields.get("token_indices")
    if isinstance(rows, dict):
        return {name: tuple(indices) for name, indices in rows.items()}
    return {"": tuple(rows)} if rows else {}
