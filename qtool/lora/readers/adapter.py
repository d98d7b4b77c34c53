"""An adapter as stored: its tensors by the modules that they change."""

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

# Suffixes of the tensors that hold indices, not values.
_INDICES = ("_topk_indices", ".shira_indices")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterModule:
    """The tensors that change one module.

    Attributes:
        path: the module's name in the base model.
        parts: the tensors by the names of their roles, such as ``lora_A``, or ``lora_B.bias``.
        depth: how many adapters of the same module are wrapped around this one, where several parameters are trained.
        wrapped: whether the module is a part of another one that is trained as well.
        alpha: the numerator of its scale, where it is stored with its tensors.
        piece: the part of a pipeline that it belongs to, such as ``"unet"``, where its name gives it.
    """

    path: str
    parts: Mapping[str, torch.Tensor]
    depth: int = 0
    wrapped: bool = False
    alpha: float | None = None
    piece: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter of a model.

    Attributes:
        source: the file or folder.
        settings: its configuration.
        modules: the modules that it changes.
        replaced: whole parameters that replace those of the base, by name.
        shared: tensors that all modules use, by role.
        flattened: whether the modules' names have underscores instead of dots.
        translation: another library's names of modules; None where names are those of the base.
    """

    source: Path
    settings: AdapterSettings
    modules: tuple[AdapterModule, ...]
    replaced: Mapping[str, torch.Tensor] = field(default_factory=dict)
    shared: Mapping[str, torch.Tensor] = field(default_factory=dict)
    flattened: bool = False
    translation: Translation | None = None

    def scale_of(self, module: AdapterModule, rank: int) -> float:
        """Returns the factor of the module's product."""
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
                fix="gather the shards of the weights before saving the adapter",
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
