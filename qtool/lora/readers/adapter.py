"""An adapter as it was stored: small tensors by the modules that they change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.lora.readers.settings import AdapterSettings

if TYPE_CHECKING:
    import torch

    from qtool.lora.readers.library_names import Translation

# The tensors that hold places, not values, by the ends of their names.
_INDICES = ("_topk_indices", ".shira_indices")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterModule:
    """Holds what changes one module.

    Attributes:
        path: the module's name in the base model.
        parts: the tensors by the names of their roles, such as ``lora_A``, or ``lora_B.bias``.
        depth: how many adapters of the same module lie around this one, where several of its parameters are trained.
        wrapped: whether the module is a part of another one that is trained as well.
        alpha: what its scale is made of, where it is stored with its tensors.
        piece: the part of a pipeline that it belongs to, such as ``"unet"``, where its name says so.
    """

    path: str
    parts: Mapping[str, torch.Tensor]
    depth: int = 0
    wrapped: bool = False
    alpha: float | None = None
    piece: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Holds what changes a model.

    Attributes:
        source: the file or folder.
        settings: what the tensors mean.
        modules: those with parts that a formula turns into changes.
        replaced: whole parameters that stand in for those of the base, by name.
        shared: tensors that all modules use, by role.
        flattened: whether the modules' names have underscores for dots.
        translation: what other libraries call modules; None where names are those of the base.
    """

    source: Path
    settings: AdapterSettings
    modules: tuple[AdapterModule, ...]
    replaced: Mapping[str, torch.Tensor] = field(default_factory=dict)
    shared: Mapping[str, torch.Tensor] = field(default_factory=dict)
    flattened: bool = False
    translation: Translation | None = None

    def scale_of(self, module: AdapterModule, rank: int) -> float:
        """Returns the factor in front of the module's product."""
        if module.alpha is not None:
            return module.alpha / rank
        return self.settings.scale_of(module.path, rank)


def check_tensors(tensors: Mapping[str, torch.Tensor], source: Path) -> None:
    """Passes when every tensor holds finite floats, at least one; counters and indices may be integers.

    Raises:
        InputError: one is empty, of another type, or holds a NaN or an infinity.
    """
    import torch

    if not tensors:
        raise InputError(f"{source} holds no tensors", fix="save the adapter again")
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            raise InputError(
                f"'{name}' in {source} has the shape {tuple(tensor.shape)}, so no elements",
                fix="gather the shards of the weights before the adapter is saved",
            )
        if (tensor.ndim == 0 or name.endswith(_INDICES)) and not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            raise InputError(
                f"'{name}' in {source} holds {str(tensor.dtype).removeprefix('torch.')}, not floats",
                fix="save the adapter in float32, float16 or bfloat16",
            )
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"'{name}' in {source} holds a NaN or an infinity", fix="use a checkpoint from before training broke"
            )
