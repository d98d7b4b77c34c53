"""Selects the parts of a pipeline that an adapter changes, such as its unet or its text encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from qtool.errors import InputError, UsageError
from qtool.lora.readers.adapter import Adapter

Fits = Callable[[Adapter], bool]


def chosen_pieces(adapters: Sequence[Adapter], names: Sequence[str], fits: Fits) -> list[Adapter]:
    """Returns the adapters with the modules to merge.

    Args:
        adapters: the adapters.
        names: pieces, such as ``"unet"``; empty for all of them.
        fits: returns whether the base has all modules of an adapter.

    Raises:
        UsageError: no adapter has a piece of that name.
        InputError: only some of an adapter's pieces are in the base, or two of them change one module.
    """
    known = sorted({module.piece for adapter in adapters for module in adapter.modules if module.piece})
    for name in names:
        if name not in known:
            raise UsageError(
                f"no adapter has a part {name}",
                fix=f"--part takes {', '.join(known)} here" if known else "drop --part",
            )
    return [_of(adapter, names) if names else _whole(adapter, fits) for adapter in adapters]


def _of(adapter: Adapter, names: Sequence[str]) -> Adapter:
    modules = tuple(module for module in adapter.modules if module.piece is None or module.piece in names)
    if not modules and adapter.modules:
        raise InputError(
            f"{adapter.source} changes nothing of {', '.join(names)}", fix="leave it out, or name another --part"
        )
    return replace(adapter, modules=modules)


def _whole(adapter: Adapter, fits: Fits) -> Adapter:
    pieces = {module.piece: _of(adapter, [module.piece]) for module in adapter.modules if module.piece}
    if len(pieces) < 2:
        return adapter
    fitting = {piece: fits(part) for piece, part in pieces.items()}
    if any(fitting.values()) and not all(fitting.values()):
        inside = next(piece for piece, found in fitting.items() if found)
        outside = next(piece for piece, found in fitting.items() if not found)
        raise InputError(
            f"{adapter.source} changes the {outside}, too, and the base does not have all of that",
            fix=f"merge the rest alone with --part {inside}",
        )
    _check_apart(adapter, pieces)
    return adapter


def _check_apart(adapter: Adapter, pieces: Mapping[str, Adapter]) -> None:
    owners: dict[str, str] = {}
    for piece, part in pieces.items():
        for module in part.modules:
            other = owners.setdefault(module.path, piece)
            if other != piece:
                raise InputError(
                    f"{adapter.source} changes {module.path} both as a part of the {other} and of the {piece}",
                    fix=f"name the one that the base is, such as --part {other}",
                )
