"""Shipped profiles for cross-target quantization, measured on two cores at 2.6 GHz of an AMD Zen 4."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files

from qtool.backends.machine_profile import MachineProfile, profile_from_json

# A model for every x86 has to be fast where integers save least. No ARM or other machine was measured: their substitute
# distinguishes layers by their sizes, and keeps none of them float.
_PROFILES: Mapping[str, str] = {"x86": "x86-avx2", "x86-avx2": "x86-avx2", "x86-vnni": "x86-vnni"}
_STAND_IN = "x86-vnni"


def has_profile(target: str) -> bool:
    """Returns whether a machine of that kind was measured."""
    return target in _PROFILES


def shipped_profile(target: str) -> MachineProfile:
    """Returns the profile for a target, or its substitute."""
    name = _PROFILES.get(target, _STAND_IN)
    text = files("qtool.backends.onnxruntime_cpu").joinpath("profiles", f"{name}.json").read_text(encoding="utf-8")
    return profile_from_json(json.loads(text), f"{name}.json")
