"""Maps names with underscores instead of dots back to names of the base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qtool.errors import InputError


def unflattened(modules: Sequence[str], base_names: Iterable[str], source: str) -> dict[str, str]:
    """Returns the base's module for each flattened name.

    Args:
        modules: flattened names, such as ``mid_block_attn_to_q``.
        base_names: names of tensors in the base.
        source: the adapter, for errors.

    Raises:
        InputError: a module is not in the base, or several of its modules have one flattened name.
    """
    found: dict[str, set[str]] = {}
    for name in base_names:
        owner = name.rpartition(".")[0]
        found.setdefault(owner.replace(".", "_"), set()).add(owner)
    missing = [module for module in modules if module not in found]
    if missing:
        raise InputError(
            f"{source} changes {missing[0]}, and no module of the base has that name with underscores instead of dots",
            fix="name the part of the model that the adapter was trained on, such as its unet",
        )
    unclear = next((module for module in modules if len(found[module]) > 1), None)
    if unclear is not None:
        raise InputError(
            f"{unclear} in {source} is ambiguous: {', '.join(sorted(found[unclear]))}",
            fix="rename the key in the adapter's file",
        )
    return {module: next(iter(found[module])) for module in modules}
