"""Builds the changes of LoHa, LoKr and VeRA: Hadamard, Kronecker and shared-projection products.

Sources: Hyeon-Woo et al., FedPara, https://arxiv.org/abs/2108.06098 (Hadamard products); Edalati et al., KronA,
https://arxiv.org/abs/2212.10650 (Kronecker products); Kopiczko et al., VeRA, https://arxiv.org/abs/2310.11454; and how
https://github.com/huggingface/peft and https://github.com/KohakuBlueleaf/LyCORIS store them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.lora.methods.changes import LowRank
from qtool.lora.methods.module_changes import BaseModule, ModuleChange, check_roles
from qtool.lora.readers.adapter import Adapter, AdapterModule

if TYPE_CHECKING:
    import torch

_HADAMARD = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_HADAMARD_CORES = {"hada_t1", "hada_t2"}
_KRONECKER = {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hadamard:
    """Adds scale · (w1a @ w1b) ⊙ (w2a @ w2b), or with cores the same of two Tucker products.

    Attributes:
        parts: the matrices by role.
        scale: the factor.
        rank: of both products.
    """

    parts: Mapping[str, torch.Tensor]
    scale: float
    rank: int
    kind: str = "LoHa"
    additive: bool = True
    by_rows: bool = True

    @property
    def rows(self) -> int:
        """How many rows the product has."""
        return int(self.parts["hada_w1_a"].shape[1 if "hada_t1" in self.parts else 0])

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns rows of the product."""
        return (self._factor(1, weight, rows) * self._factor(2, weight, rows)).mul_(self.scale).reshape(weight.shape)

    def _factor(self, number: int, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        first, second = (self.parts[f"hada_w{number}_{role}"] for role in "ab")
        core = self.parts.get(f"hada_t{number}")
        if core is not None:
            return _tucker(core.to(weight.dtype), first[:, rows].to(weight.dtype), second.to(weight.dtype))
        return first[rows].to(weight.dtype) @ second.to(weight.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kronecker:
    """Adds scale · w1 ⊗ w2, where each may be a product itself.

    Attributes:
        parts: the matrices by role.
        scale: the factor.
        rank: of the products.
    """

    parts: Mapping[str, torch.Tensor]
    scale: float
    rank: int | None
    kind: str = "LoKr"
    additive: bool = True
    by_rows: bool = True

    @property
    def rows(self) -> int:
        """How many rows the product has: those of w2 for each row of w1."""
        first = self.parts["lokr_w1"] if "lokr_w1" in self.parts else self.parts["lokr_w1_a"]
        return int(first.shape[0]) * self._inner_rows

    @property
    def _inner_rows(self) -> int:
        second = self.parts["lokr_w2"] if "lokr_w2" in self.parts else self.parts["lokr_w2_a"]
        return int(second.shape[1 if "lokr_t2" in self.parts else 0])

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns rows of the product."""
        import torch

        length, start, stop = self._inner_rows, rows.start, rows.stop
        first = self._outer(weight.dtype)
        pieces = []
        for outer in range(start // length, -(-stop // length)):
            inner = slice(max(start - outer * length, 0), min(stop - outer * length, length))
            second = self._inner(weight.dtype, inner)
            row = first[outer : outer + 1]
            pieces.append(torch.kron(row.reshape(*row.shape, *(1,) * (second.ndim - 2)), second.contiguous()))
        return torch.cat(pieces).mul_(self.scale).reshape(weight.shape)

    def _outer(self, dtype: torch.dtype) -> torch.Tensor:
        if "lokr_w1" in self.parts:
            return self.parts["lokr_w1"].to(dtype)
        return self.parts["lokr_w1_a"].to(dtype) @ self.parts["lokr_w1_b"].to(dtype)

    def _inner(self, dtype: torch.dtype, rows: slice) -> torch.Tensor:
        if "lokr_w2" in self.parts:
            return self.parts["lokr_w2"][rows].to(dtype)
        first, second = self.parts["lokr_w2_a"], self.parts["lokr_w2_b"].to(dtype)
        if "lokr_t2" in self.parts:
            return _tucker(self.parts["lokr_t2"].to(dtype), first[:, rows].to(dtype), second)
        return first[rows].to(dtype) @ second.flatten(1)


def _tucker(core: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns Σᵢⱼ core[i, j, …] · first[i, out] · second[j, in]: (out, in, …)."""
    import torch

    return torch.einsum("ij...,ip,jr->pr...", core, first, second)


def hadamard_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that LoHa makes.

    Raises:
        InputError: a matrix is missing, or ranks and shapes do not agree with the settings and the base.
    """
    cores = _HADAMARD_CORES if _HADAMARD_CORES & set(module.parts) else set()
    check_roles(module, _HADAMARD | cores, set(), base.source)
    rank = module.parts["hada_w1_b"].shape[0]
    _check_rank(module, rank, adapter)
    change = Hadamard(parts=module.parts, scale=adapter.scale_of(module, rank), rank=rank)
    return [_checked(change, base)]


def kronecker_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that LoKr makes.

    Raises:
        InputError: a matrix is missing, or ranks and shapes do not agree with the settings and the base.
    """
    first = {"lokr_w1"} if "lokr_w1" in module.parts else {"lokr_w1_a", "lokr_w1_b"}
    second = {"lokr_w2"} if "lokr_w2" in module.parts else {"lokr_w2_a", "lokr_w2_b"}
    check_roles(module, first | second, {"lokr_t2"} if "lokr_w2_a" in second else set(), base.source)
    inner = next((module.parts[role] for role in ("lokr_w1_b", "lokr_w2_b") if role in module.parts), None)
    if inner is not None:
        _check_rank(module, inner.shape[0], adapter)
    rank = adapter.settings.rank_of(module.path) or (None if inner is None else int(inner.shape[0]))
    scale = 1.0 if rank is None else adapter.scale_of(module, rank)
    change = Kronecker(parts=module.parts, scale=scale, rank=None if inner is None else rank)
    return [_checked(change, base)]


def vera_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that VeRA makes: (λb · B) @ (λd · A), of projections that all modules share.

    Raises:
        InputError: the projections were not saved, or shapes do not agree with the base.
    """
    check_roles(module, {"vera_lambda_b", "vera_lambda_d"}, set(), base.source)
    if set(adapter.shared) != {"vera_A", "vera_B"}:
        raise InputError(
            f"{base.source} is VeRA without its projections, whose random values depend on the version of torch",
            fix="save it with save_projection=True",
        )
    outputs, rank = module.parts["vera_lambda_b"], module.parts["vera_lambda_d"]
    _check_rank(module, rank.shape[0], adapter)
    shape = base.shape("weight")
    transposed = adapter.settings.fan_in_fan_out and shape[1] == outputs.shape[0]
    inputs = shape[0] if transposed else shape[-1]
    first, second = adapter.shared["vera_A"], adapter.shared["vera_B"]
    if (
        (outputs.shape[0], inputs) not in (shape, shape[::-1])
        or first.shape[1] < inputs
        or second.shape[0] < len(outputs)
    ):
        raise base.misfit("weight", f"vera_lambda_b has the shape {tuple(outputs.shape)}")
    left = outputs.double()[:, None] * second[: len(outputs)].double()
    right = rank.double()[:, None] * first[:, :inputs].double()
    if transposed:
        left, right = right.T, left.T
    return [base.change("weight", LowRank(left=left, right=right, scale=1.0, kind="VeRA"))]


def _check_rank(module: AdapterModule, rank: int, adapter: Adapter) -> None:
    expected = adapter.settings.rank_of(module.path)
    if expected is not None and rank != expected:
        raise InputError(
            f"the matrices of {module.path} in {adapter.source} have the rank {rank}, and the settings say {expected}",
            fix="use the adapter_config.json that was saved with these weights",
        )


def _checked(change: Hadamard | Kronecker, base: BaseModule) -> ModuleChange:
    """Computes the product's shape on the meta device, to check that it fits."""
    import torch

    shape = base.shape("weight")
    shadows = {role: torch.empty_like(tensor, device="meta") for role, tensor in change.parts.items()}
    shadow = type(change)(parts=shadows, scale=change.scale, rank=change.rank or 1)
    try:
        shadow.delta(torch.empty(shape, dtype=torch.float32, device="meta"), slice(0, shape[0]))
    except (RuntimeError, IndexError) as error:
        raise base.misfit("weight", f"its matrices make another shape ({str(error).splitlines()[0]})") from error
    if change.rows != shape[0]:
        raise base.misfit("weight", f"its matrices make {change.rows} rows")
    return base.change("weight", change)
