"""Builds the changes of LoRA and DoRA: products of two small matrices, on every kind of layer.

Source: https://github.com/huggingface/peft: how each layer stores its matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtool.errors import InputError
from qtool.lora.merge.orientation import has_inputs_first
from qtool.lora.methods.changes import Added, Change, Dora, LowRank
from qtool.lora.methods.module_changes import BaseModule, ModuleChange, check_roles
from qtool.lora.methods.vblora_delora_adalora_randlora import adaptive_changes
from qtool.lora.readers.adapter import Adapter, AdapterModule

if TYPE_CHECKING:
    import torch

_MAGNITUDE = "lora_magnitude_vector"


def low_rank_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change of the module's weight, and of its bias where that was trained too.

    Raises:
        InputError: a matrix is missing, or ranks and shapes do not agree with the settings and the base.
    """
    if "lora_E" in module.parts:
        return adaptive_changes(module, base, adapter)
    if "lora_embedding_A" in module.parts or "lora_embedding_B" in module.parts:
        return [_embedding(module, base, adapter)]
    check_roles(module, {"lora_A", "lora_B"}, {_MAGNITUDE, "lora_B.bias"}, base.source)
    first, second = module.parts["lora_A"], module.parts["lora_B"]
    rank = _checked_rank(module, first.shape[0], second.shape[1], adapter)
    scale = adapter.scale_of(module, rank) * _times(module, base)
    parameter = "weight" if base.has("weight") or not base.has("in_proj_weight") else "in_proj_weight"
    if first.ndim > 2:
        changes = [base.change(parameter, _convolution(module, base, parameter, scale))]
    else:
        changes = [base.change(parameter, _linear(module, base, parameter, scale, adapter))]
    if "lora_B.bias" in module.parts:
        bias = module.parts["lora_B.bias"]
        if tuple(bias.shape) != base.shape("bias"):
            raise base.misfit("bias", f"lora_B.bias has the shape {tuple(bias.shape)}")
        changes.append(base.change("bias", Added(values=bias, scale=scale)))
    return changes


def _linear(module: AdapterModule, base: BaseModule, parameter: str, scale: float, adapter: Adapter) -> Change:
    first, second = module.parts["lora_A"], module.parts["lora_B"]
    shape, outputs_first = base.shape(parameter), (second.shape[0], first.shape[1])
    square = shape == outputs_first == outputs_first[::-1]
    inputs_first = has_inputs_first(base, parameter, adapter) if square else shape == outputs_first[::-1]
    if shape == outputs_first and not inputs_first:
        product = LowRank(left=second, right=first, scale=scale)
        return _with_norms(product, module, base, parameter, axis=0)
    if inputs_first:
        product = LowRank(left=first.T, right=second.T, scale=scale)
        return _with_norms(product, module, base, parameter, axis=1)
    raise base.misfit(parameter, f"lora_B @ lora_A has the shape {tuple(outputs_first)}")


def _convolution(module: AdapterModule, base: BaseModule, parameter: str, scale: float) -> Change:
    first, second = module.parts["lora_A"], module.parts["lora_B"]
    shape = base.shape(parameter)
    if shape != (second.shape[0], *first.shape[1:]) or any(length != 1 for length in second.shape[2:]):
        grouped = " (grouped convolutions have no exact merged form)" if shape[:1] == second.shape[:1] else ""
        raise base.misfit(
            parameter, f"lora_A has the shape {tuple(first.shape)}, lora_B {tuple(second.shape)}{grouped}"
        )
    product = LowRank(left=second.flatten(1), right=first.flatten(1), scale=scale)
    return _with_norms(product, module, base, parameter, axis=0)


def _embedding(module: AdapterModule, base: BaseModule, adapter: Adapter) -> ModuleChange:
    check_roles(module, {"lora_embedding_A", "lora_embedding_B"}, {_MAGNITUDE}, base.source)
    first, second = module.parts["lora_embedding_A"], module.parts["lora_embedding_B"]
    rank = _checked_rank(module, first.shape[0], second.shape[1], adapter)
    if base.shape("weight") != (first.shape[1], second.shape[0]):
        raise base.misfit("weight", f"the product has the shape {(first.shape[1], second.shape[0])}")
    product = LowRank(left=first.T, right=second.T, scale=adapter.scale_of(module, rank))
    return base.change("weight", _with_norms(product, module, base, "weight", axis=1))


def _times(module: AdapterModule, base: BaseModule) -> int:
    """Returns how many times the product is added.

    PEFT wraps the last projection of nn.MultiheadAttention together with the first ones, and adds its product twice:
    when it merges, and in every forward pass of the training. The trained result is the sum with both.
    """
    owner, _, name = base.path.rpartition(".")
    return 2 if name == "out_proj" and f"{owner}.in_proj_weight" in base.shapes and module.wrapped else 1


def _checked_rank(module: AdapterModule, first: int, second: int, adapter: Adapter) -> int:
    expected = adapter.settings.rank_of(module.path)
    if first != second or (expected is not None and first != expected):
        wanted = "" if expected is None else f", and the settings say {expected}"
        raise InputError(
            f"the matrices of {module.path} in {adapter.source} have the ranks {first} and {second}{wanted}",
            fix="use the adapter_config.json that was saved with these weights",
        )
    return first


def _with_norms(product: LowRank, module: AdapterModule, base: BaseModule, parameter: str, *, axis: int) -> Change:
    magnitude: torch.Tensor | None = module.parts.get(_MAGNITUDE)
    if magnitude is None:
        return product
    if magnitude.numel() != base.shape(parameter)[axis]:
        raise base.misfit(parameter, f"{_MAGNITUDE} has the shape {tuple(magnitude.shape)}")
    return Dora(product=product, magnitude=magnitude, axis=axis)
