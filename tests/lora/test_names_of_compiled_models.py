"""Adapters and bases from runs with torch.compile: its part of names is no part of a module's name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.errors import InputError
from qtool.lora.merge.names import find_renaming

NAMES = ("inp.weight", "blocks.0.q.weight", "blocks.0.k.weight", "blocks.1.q.weight", "blocks.1.k.weight")
MODULES = ("blocks.0.q", "blocks.1.q")

places = st.sets(st.sampled_from(["", "blocks", "blocks.0", "blocks.1", "blocks.0.q", "blocks.1.q"]))


def compiled(name: str, where: set[str]) -> str:
    parts = name.split(".")
    spelled = ["_orig_mod"] if "" in where else []
    for count, part in enumerate(parts, start=1):
        spelled.append(part)
        if ".".join(parts[:count]) in where:
            spelled.append("_orig_mod")
    return ".".join(spelled)


@given(base=places, adapter=places, prefix=st.sampled_from(["", "model."]))
def test_modules_are_found_wherever_something_was_compiled(base: set[str], adapter: set[str], prefix: str) -> None:
    names = [prefix + compiled(name, base) for name in NAMES]
    modules = [compiled(module, adapter) for module in MODULES]
    renaming = find_renaming(modules, names, "adapter")
    for module, plain in zip(modules, MODULES, strict=True):
        assert renaming(module) == prefix + compiled(plain, base)
        assert renaming(f"{module}.weight") == prefix + compiled(f"{plain}.weight", base)


def test_a_module_that_is_not_there_is_still_missed() -> None:
    with pytest.raises(InputError, match=r"blocks\.0\.v"):
        find_renaming(["blocks.0._orig_mod.v"], [compiled(name, {"blocks.0"}) for name in NAMES], "adapter")
