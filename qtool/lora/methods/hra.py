"""Builds the changes of HRA: Householder reflections of the inputs of a weight.

Source: Yuan et al., Bridging the gap between low-rank and orthogonal adaptation via Householder reflection adaptation,
https://arxiv.org/abs/2405.17484; and how https://github.com/huggingface/peft stores it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtool.lora.methods.module_changes import BaseModule, ModuleChange, check_roles
from qtool.lora.readers.adapter import Adapter, AdapterModule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Reflected:
    """Changes the weight to W · (I − 2u₁u₁ᵀ) · (I − 2u₂u₂ᵀ) · ….

    Attributes:
        normals: (elements of a row, rank): the vectors u, each of length 1.
    """

    normals: torch.Tensor
    kind: str = "HRA"
    scale: float | None = None
    additive: bool = False
    by_rows: bool = True

    @property
    def rank(self) -> int:
        """How many reflections there are."""
        return int(self.normals.shape[1])

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the difference to the reflected weight."""
        import torch

        normals = self.normals.to(weight.dtype)
        change = torch.zeros_like(weight).flatten(1)
        inputs = weight.flatten(1)
        for index in range(self.rank):
            normal = normals[:, index]
            change.sub_(torch.outer((inputs + change) @ normal, 2 * normal))
        return change.reshape(weight.shape)


def reflected_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that HRA makes.

    Raises:
        InputError: shapes do not agree with the base.
    """
    import torch

    check_roles(module, {"hra_u"}, set(), base.source)
    vectors, shape = module.parts["hra_u"].to(torch.float64), base.shape("weight")
    if vectors.ndim != 2 or len(shape) < 2 or vectors.shape[0] != math.prod(shape[1:]):
        raise base.misfit("weight", f"hra_u has the shape {tuple(vectors.shape)}")
    if adapter.settings.details.orthogonal:
        vectors = _orthogonal(vectors)
    normals = vectors / torch.linalg.vector_norm(vectors, dim=0)
    if not bool(torch.isfinite(normals).all()):
        raise base.misfit("weight", "hra_u holds a zero vector")
    return [base.change("weight", Reflected(normals=normals))]


def _orthogonal(vectors: torch.Tensor) -> torch.Tensor:
    """Makes each vector orthogonal to those before it, by modified Gram-Schmidt."""
    import torch

    found: list[torch.Tensor] = []
    for index in range(vectors.shape[1]):
        rest = vectors[:, index]
        for other in found:
            rest = rest - (other @ rest) * other
        found.append(rest / torch.linalg.vector_norm(rest))
    return torch.stack(found, dim=1)
