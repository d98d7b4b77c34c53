"""Describes an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qtool.lora.readers.adapter import Adapter, AdapterModule
from qtool.lora.readers.reading import read_adapter

_NORMS = {"lora_magnitude_vector", "dora_scale"}
# Matrices whose first axis is the rank.
_INNER = ("lora_A", "lora_embedding_A", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTarget:
    """Describes the changes of one module.

    Attributes:
        module: its name in the base.
        parts: the shapes of the tensors by their roles.
        rank: as the settings or the tensors have it; None for kinds without.
        scale: the factor of the product; None for kinds without.
    """

    module: str
    parts: dict[str, tuple[int, ...]]
    rank: int | None
    scale: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterReport:
    """Describes an adapter.

    Attributes:
        path: the file or folder.
        kind: such as ``"LoRA"``.
        base_model: its base model, where that is known.
        rank: the default rank, without patterns.
        alpha: the default alpha, without patterns.
        parameters: how many numbers it holds.
        targets: the modules that it changes.
        replaced: whole parameters that it contains.
    """

    path: Path
    kind: str
    base_model: str | None
    rank: int | None
    alpha: float | None
    parameters: int
    targets: tuple[AdapterTarget, ...]
    replaced: tuple[str, ...]


def inspect_adapter(path: Path) -> AdapterReport:
    """Describes the adapter in ``path``.

    Raises:
        FormatError: it is damaged.
        InputError: it is a pickle, incomplete, or of a kind that cannot be merged.
    """
    adapter = read_adapter(path)
    settings = adapter.settings
    tensors = [tensor for module in adapter.modules for tensor in module.parts.values()]
    tensors += [*adapter.replaced.values(), *adapter.shared.values()]
    dora = any(_NORMS & set(module.parts) for module in adapter.modules)
    return AdapterReport(
        path=adapter.source,
        kind=settings.kind if not dora else "DoRA" if settings.kind == "LoRA" else f"{settings.kind} with DoRA",
        base_model=settings.base_model,
        rank=settings.rank,
        alpha=settings.alpha,
        parameters=sum(tensor.numel() for tensor in tensors),
        targets=tuple(_target(module, adapter) for module in adapter.modules),
        replaced=tuple(adapter.replaced),
    )


def _target(module: AdapterModule, adapter: Adapter) -> AdapterTarget:
    rank = adapter.settings.rank_of(module.path)
    inner = next((module.parts[role] for role in _INNER if role in module.parts), None)
    if rank is None and inner is not None:
        rank = int(inner.shape[0])
    return AdapterTarget(
        module=module.path,
        parts={role: tuple(tensor.shape) for role, tensor in module.parts.items()},
        rank=rank,
        scale=None if rank is None else adapter.scale_of(module, rank),
    )
