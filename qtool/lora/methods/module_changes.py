"""One module of the base, for the formulas of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qtool.errors import InputError
from qtool.lora.methods.changes import Change
from qtool.lora.readers.adapter import AdapterModule

# Tensors that GPTQ, AWQ, compressed-tensors, bitsandbytes and others store next to or instead of a weight.
_QUANTIZED = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv", "weight.absmax", "SCB")


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """A tensor of the base and its change."""

    weight: str
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModule:
    """Finds the parameters of one module.

    Attributes:
        path: its name in the base.
        shapes: the shapes of all tensors of the base.
        source: the adapter, for errors.
    """

    path: str
    shapes: Mapping[str, tuple[int, ...]]
    source: str

    def has(self, parameter: str) -> bool:
        """Returns whether the module has a parameter of this name."""
        return f"{self.path}.{parameter}" in self.shapes

    def shape(self, parameter: str) -> tuple[int, ...]:
        """Returns the shape of a parameter.

        Raises:
            InputError: there is none of that name, or the module was quantized.
        """
        name = f"{self.path}.{parameter}"
        mark = next((mark for mark in _QUANTIZED if self.has(mark)), None)
        if mark is not None:
            raise InputError(
                f"the base holds {self.path}.{mark}: it is quantized",
                fix="merge into the float weights that it was made from, then quantize the result",
            )
        if name not in self.shapes:
            raise InputError(
                f"{self.source} changes {name}, which the base does not have: it is for another base",
                fix="name the base that the adapter was trained on, with float weights",
            )
        return self.shapes[name]

    def change(self, parameter: str, change: Change) -> ModuleChange:
        """Returns the change of one parameter."""
        return ModuleChange(f"{self.path}.{parameter}", change)

    def misfit(self, parameter: str, what: str) -> InputError:
        """Returns the error for tensors that do not fit a parameter."""
        return InputError(
            f"{self.source} does not fit {self.path}.{parameter} of the base, whose shape is "
            f"{self.shape(parameter)}: {what}",
            fix="name the base that the adapter was trained on; `qtool inspect` shows its name",
        )


def check_roles(module: AdapterModule, needed: set[str], allowed: set[str], source: str) -> None:
    """Passes when a module has all ``needed`` parts, and no more than the ``allowed`` ones.

    Raises:
        InputError: one is missing, or one is unknown.
    """
    missing = sorted(needed - set(module.parts))
    if missing:
        raise InputError(
            f"{source} holds {', '.join(sorted(module.parts))} of {module.path} without {missing[0]}",
            fix="save the adapter again; the file is not complete",
        )
    unused = sorted(set(module.parts) - needed - allowed)
    if unused:
        raise InputError(
            f"{source} holds {unused[0]} of {module.path}, which does not belong to its kind of adapter",
            fix="merge it with the library that trained it",
        )
