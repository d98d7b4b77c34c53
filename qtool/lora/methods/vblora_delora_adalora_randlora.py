"""Builds the changes of VB-LoRA, DeLoRA, AdaLoRA and RandLoRA: low-rank products of computed matrices.

Sources: Li et al., VB-LoRA, https://arxiv.org/abs/2405.15179 (every piece of a matrix mixes a few vectors of a bank);
Bini et al., DeLoRA, https://arxiv.org/abs/2503.18225; Zhang et al., AdaLoRA, https://arxiv.org/abs/2303.10512 (P·Λ·Q);
Albert et al., RandLoRA, https://arxiv.org/abs/2502.00987; and how https://github.com/huggingface/peft stores them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.lora.methods.changes import LowRank
from qtool.lora.methods.module_changes import BaseModule, ModuleChange, check_roles
from qtool.lora.readers.adapter import Adapter, AdapterModule

if TYPE_CHECKING:
    import torch

_BANK = "vblora_vector_bank"
_BASES = {"randlora_A", "randlora_B"}
_INDICES, _WEIGHTS = "_topk_indices", "_topk_weights"
# PEFT's epsilon in divisors of DeLoRA and AdaLoRA.
_SMALLEST_NORM = 1e-4
_RANK_OFFSET = 1e-5


def bank_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that VB-LoRA makes.

    Raises:
        InputError: the bank is missing, or shapes do not agree with the settings and the base.
    """
    if set(adapter.shared) != {_BANK} or adapter.shared[_BANK].ndim != 2:
        raise InputError(f"{base.source} is VB-LoRA without its bank of vectors", fix="save the adapter again")
    first = _mixture(module, "vblora_logits_A", base, adapter)
    second = _mixture(module, "vblora_logits_B", base, adapter)
    # (rank, pieces, length) and (pieces, rank, length)
    right, left = first.flatten(1), second.transpose(1, 2).flatten(0, 1)
    return [_product(module, base, adapter, left=left, right=right, scale=1.0)]


def _mixture(module: AdapterModule, role: str, base: BaseModule, adapter: Adapter) -> torch.Tensor:
    """Returns the pieces of a matrix: those vectors of the bank with the largest logits, by their softmax."""
    import torch

    bank, count = adapter.shared[_BANK].to(torch.float64), adapter.settings.details.chosen
    if role in module.parts:
        check_roles(module, {"vblora_logits_A", "vblora_logits_B"}, set(), base.source)
        logits = module.parts[role].to(torch.float64)
        if logits.ndim != 3 or logits.shape[2] != len(bank) or not 0 < count <= len(bank):
            raise base.misfit("weight", f"{role} has the shape {tuple(logits.shape)}, the bank {tuple(bank.shape)}")
        largest = logits.topk(count)
        weights, indices = torch.softmax(largest.values, dim=-1), largest.indices
    else:
        roles = {f"vblora_logits_{letter}{part}" for letter in "AB" for part in (_INDICES, _WEIGHTS)}
        check_roles(module, roles, set(), base.source)
        indices, stored = module.parts[role + _INDICES].to(torch.int64), module.parts[role + _WEIGHTS].double()
        if stored.ndim != 3 or indices.shape != (*stored.shape[:2], stored.shape[2] + 1):
            raise base.misfit("weight", f"{role}{_WEIGHTS} has the shape {tuple(stored.shape)}")
        if int(indices.min()) < 0 or int(indices.max()) >= len(bank):
            raise base.misfit("weight", f"{role}{_INDICES} names vectors that the bank does not have")
        # All weights but the last are stored; their sum is one.
        weights = torch.cat([stored, 1 - stored.sum(-1, keepdim=True)], dim=-1)
    return torch.einsum("abk,abkl->abl", weights, bank[indices])


def bounded_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that DeLoRA makes: λ/r · B · diag(1 / (‖bᵢ‖·‖aᵢ‖)) · A, with inputs scaled by ‖W‖.

    Raises:
        InputError: shapes do not agree with the base.
    """
    import torch

    check_roles(module, {"delora_A", "delora_B", "delora_lambda", "delora_w_norm"}, set(), base.source)
    first, second = module.parts["delora_A"].double(), module.parts["delora_B"].double()
    norms, bound = module.parts["delora_w_norm"].double(), module.parts["delora_lambda"].double()
    agree = first.ndim == second.ndim == 2 and len(first) == second.shape[1]
    if not agree or norms.shape != first.shape[1:] or bound.numel() != 1:
        raise base.misfit("weight", f"delora_A has the shape {tuple(first.shape)}")
    lengths = torch.linalg.vector_norm(first, dim=1).clamp(min=_SMALLEST_NORM)
    lengths = lengths * torch.linalg.vector_norm(second, dim=0).clamp(min=_SMALLEST_NORM)
    right = bound.reshape(()) / len(first) / lengths[:, None] * first * norms
    return [_product(module, base, adapter, left=second, right=right, scale=1.0)]


def adaptive_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that AdaLoRA makes: alpha/r · B · diag(e) · A, with the rank r that was left to the module.

    Raises:
        InputError: shapes do not agree with the base.
    """
    check_roles(module, {"lora_A", "lora_B", "lora_E"}, set(), base.source)
    first, second, values = (module.parts[role].double() for role in ("lora_A", "lora_B", "lora_E"))
    if first.ndim != 2 or second.ndim != 2 or values.shape != (len(first), 1):
        raise base.misfit("weight", f"lora_E has the shape {tuple(values.shape)}, lora_A {tuple(first.shape)}")
    rank, alpha = len(first), adapter.settings.alpha or 0.0
    scale = (alpha if alpha > 0 else rank) / (rank + _RANK_OFFSET)
    return [_product(module, base, adapter, left=second, right=values * first, scale=scale)]


def random_bases_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change that RandLoRA makes: Σ Bᵢ · diag(λᵢ) · A · diag(γᵢ), of bases that all modules share.

    Raises:
        InputError: the bases were not saved, or shapes do not agree with the base.
    """
    check_roles(module, {"randlora_lambda", "randlora_gamma"}, _BASES, base.source)
    # They are saved once, or repeated with every module.
    bases = {**adapter.shared, **module.parts}
    if not set(bases) >= _BASES:
        raise InputError(
            f"{base.source} is RandLoRA without its bases, whose random values depend on the version of torch",
            fix="save it with save_projection=True",
        )
    small, large = bases["randlora_A"], bases["randlora_B"]
    outer, inner = module.parts["randlora_lambda"].double(), module.parts["randlora_gamma"].double()
    shape = base.shape("weight")
    outputs, inputs = shape[::-1] if adapter.settings.fan_in_fan_out else (shape[0], shape[-1])
    short, long = sorted((outputs, inputs))
    if outer.ndim != 2 or inner.shape != (outer.shape[1], short) or small.ndim != 3 or large.ndim != 3:
        raise base.misfit("weight", f"randlora_gamma has the shape {tuple(inner.shape)}")
    rank, count = outer.shape
    if (
        small.shape[0] != rank
        or 1 < small.shape[1] < count
        or small.shape[2] < short
        or large.shape[0] < long
        or large.shape[2] != rank
    ):
        raise base.misfit("weight", f"randlora_B has the shape {tuple(large.shape)}")
    first = (outer[:, :, None] * small[:, :count, :short].double() * inner).flatten(0, 1)
    second = large[:long, :count].flatten(1)
    # The trained matrices are on the shorter side.
    left, right = (second, first) if short == inputs else (first.T, second.T)
    scale = adapter.scale_of(module, rank)
    return [_product(module, base, adapter, left=left, right=right, scale=scale)]


def _product(
    module: AdapterModule, base: BaseModule, adapter: Adapter, *, left: torch.Tensor, right: torch.Tensor, scale: float
) -> ModuleChange:
    """Checks that a product fits the weight, which may be stored with its inputs first."""
    shape, kind = base.shape("weight"), adapter.settings.kind
    rows, length = shape[0], 1
    for extent in shape[1:]:
        length *= extent
    made = (left.shape[0], right.shape[1])
    if left.shape[1] == right.shape[0]:
        inputs_first = adapter.settings.fan_in_fan_out and len(shape) == 2
        if made == (rows, length) and not (inputs_first and made == (length, rows)):
            return base.change("weight", LowRank(left=left, right=right, scale=scale, kind=kind))
        if made == (length, rows) and inputs_first:
            return base.change("weight", LowRank(left=right.T, right=left.T, scale=scale, kind=kind))
    raise base.misfit("weight", f"the product for {module.path} has the shape {made}")
