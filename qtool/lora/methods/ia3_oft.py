"""Builds the changes of IA3 and OFT, which multiply a weight instead of adding to it.

Sources: Liu et al., https://arxiv.org/abs/2205.05638 (IA3); Qiu et al., https://arxiv.org/abs/2306.07280 (OFT); and how
https://github.com/huggingface/peft stores them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qtool.lora.methods.module_changes import BaseModule, ModuleChange, check_roles
from qtool.lora.readers.adapter import Adapter, AdapterModule
from qtool.lora.readers.settings import Rotation

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """Multiplies the weight by factors along one of its axes.

    Attributes:
        factors: in a shape that broadcasts to the weight's.
    """

    factors: torch.Tensor
    kind: str = "IA3"
    rank: int | None = None
    scale: float | None = None
    additive: bool = False
    by_rows: bool = True

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the difference to the product."""
        factors = self.factors if self.factors.shape[0] == 1 else self.factors[rows]
        return weight * (factors.to(weight.dtype) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """Rotates the inputs of the weight: W' = W · Rᵀ, block by block, with R = (I − Q)(I + Q)⁻¹ and Q skew-symmetric.

    Attributes:
        numbers: (blocks, n(n−1)/2): the upper triangles of Q.
        block: n.
        blocks: how many blocks there are; more than ``numbers`` has where they share one.
        rotation: how R is computed from Q.
        turned: R, once it is computed: (blocks, n, n), or (1, n, n).
    """

    numbers: torch.Tensor
    block: int
    blocks: int
    rotation: Rotation
    turned: torch.Tensor | None = None
    kind: str = "OFT"
    scale: float | None = None
    additive: bool = False
    by_rows: bool = True

    @property
    def rank(self) -> int:
        """The length of a block."""
        return self.block

    def ready(self, weight: torch.Tensor) -> Rotated:
        """Returns the change with its rotations, which all rows share."""
        import torch

        return replace(self, turned=_rotations(self.numbers.to(torch.float64), self.block, self.rotation))

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the difference to the rotated weight."""
        turned = self.turned
        if turned is None:
            turned = _rotations(self.numbers.to(weight.dtype), self.block, self.rotation)
        inputs = weight.reshape(weight.shape[0], self.blocks, self.block)
        turned = turned.to(weight.dtype).expand(self.blocks, -1, -1)
        return (turned @ inputs.permute(1, 2, 0)).permute(2, 0, 1).reshape(weight.shape) - weight


def _rotations(numbers: torch.Tensor, block: int, rotation: Rotation) -> torch.Tensor:
    import torch

    above, right = torch.triu_indices(block, block, 1)
    skew = torch.zeros(len(numbers), block, block, dtype=numbers.dtype)
    skew[:, above, right] = numbers
    skew = skew - skew.transpose(1, 2)
    if rotation.constraint is not None:
        limit = rotation.constraint / len(numbers) ** 0.5
        norm = torch.linalg.matrix_norm(skew, keepdim=True)
        skew = torch.where(norm <= limit, skew, skew * (limit / norm))
    one = torch.eye(block, dtype=numbers.dtype).expand_as(skew)
    if rotation.neumann_terms is None:
        exact: torch.Tensor = torch.linalg.solve(one + skew, one - skew, left=False)
        return exact
    return _neumann(one, skew, rotation.neumann_terms)


def _neumann(one: torch.Tensor, skew: torch.Tensor, terms: int) -> torch.Tensor:
    """Returns I + 2Q + 2Q² + … + Qⁿ, PEFT's truncated series: the last power counts once."""
    if terms > 2:
        # PEFT adds the third power together with the second.
        terms = max(terms, 4)
    result, power = one.clone(), one
    for exponent in range(1, terms):
        power = power @ skew
        result = result + (power if exponent == terms - 1 and terms > 2 else 2 * power)
    return result


def scaled_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the changes that IA3 makes: of the weight, and of the bias where outputs are scaled.

    Raises:
        InputError: shapes do not agree with the base.
    """
    check_roles(module, {"ia3_l"}, set(), base.source)
    factors, shape = module.parts["ia3_l"], base.shape("weight")
    outputs = not adapter.settings.is_feedforward(module.path)
    spread = _along(factors, shape, outputs=outputs, inputs_first=adapter.settings.fan_in_fan_out)
    if spread.ndim != len(shape) or not all(length in (1, shape[axis]) for axis, length in enumerate(spread.shape)):
        raise base.misfit("weight", f"ia3_l has the shape {tuple(factors.shape)}")
    changes = [base.change("weight", Scaled(factors=spread))]
    if outputs and base.has("bias"):
        changes.append(base.change("bias", Scaled(factors=factors.reshape(base.shape("bias")))))
    return changes


def _along(factors: torch.Tensor, shape: tuple[int, ...], *, outputs: bool, inputs_first: bool) -> torch.Tensor:
    """Reshapes the factors to the axis of the weight that they belong to."""
    if len(shape) > 2:
        # Convolutions store (1, channels, 1, …) in both cases.
        return factors.transpose(0, 1) if outputs else factors
    # The settings cover models with both kinds of layers; where a weight is not square, the shape decides.
    axis = 0 if outputs else 1
    fits, fits_turned = shape[axis] == factors.numel(), shape[1 - axis] == factors.numel()
    return factors.T if (inputs_first and fits_turned) or (fits_turned and not fits) else factors


def rotated_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that OFT makes.

    Raises:
        InputError: shapes do not agree with the base.
    """
    check_roles(module, {"oft_R"}, set(), base.source)
    numbers, shape = module.parts["oft_R"], base.shape("weight")
    inputs = 1
    for length in shape[1:]:
        inputs *= length
    block = round((1 + (1 + 8 * numbers.shape[1]) ** 0.5) / 2)
    blocks = inputs // block
    shared = adapter.settings.rotation.block_share
    if (
        block * (block - 1) // 2 != numbers.shape[1]
        or blocks * block != inputs
        or len(numbers) != (1 if shared else blocks)
    ):
        raise base.misfit("weight", f"oft_R has the shape {tuple(numbers.shape)}")
    change = Rotated(numbers=numbers, block=block, blocks=blocks, rotation=adapter.settings.rotation)
    return [base.change("weight", change)]
