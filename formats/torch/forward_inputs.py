"""Maps inputs to the parameters of a module's forward method."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import torch

from qtool.formats.errors import FormatError
from qtool.formats.torch.example_inputs import Feeds
from qtool.formats.torch.torch_calls import Parameter, passes_on


def paired_by_name(offered: Sequence[Parameter], names: Sequence[str]) -> dict[str, str]:
    """Returns the name of the input for each parameter that gets one, for inputs that the user named.

    Raises:
        FormatError: a name belongs to no parameter, or a required parameter gets nothing.
    """
    known = [parameter.name for parameter in offered]
    required = [parameter.name for parameter in offered if parameter.required]
    if len(names) == 1 and names[0] not in known and len(required or offered) == 1:
        return {(required or [parameter.name for parameter in offered])[0]: names[0]}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise FormatError(
                f"the module's forward has no parameter '{name}' (it takes {', '.join(known)})",
                fix=f"write --input-shape {near[0]}=…" if near else "check the module's forward",
            )
    missing = [name for name in required if name not in names]
    if missing:
        raise FormatError(
            f"the module's forward needs {', '.join(missing)} too", fix=f"add --input-shape {missing[0]}=…"
        )
    return {parameter.name: parameter.name for parameter in offered if parameter.name in names}


def check_data(pairs: Mapping[str, str], feeds: Feeds) -> None:
    """Makes sure that there is an array for each of the pairs.

    Raises:
        FormatError: one is missing.
    """
    for parameter, name in pairs.items():
        if name not in feeds and "" not in feeds:
            raise _no_array(name or parameter, feeds)


def paired_with_data(offered: Sequence[Parameter], feeds: Feeds) -> dict[str, str]:
    """Returns the name of the array for each parameter that gets one.

    Raises:
        FormatError: a required parameter gets none.
    """
    by_name = {parameter.name: parameter.name for parameter in offered if parameter.name in feeds}
    required = [parameter.name for parameter in offered if parameter.required]
    if by_name and all(name in by_name for name in required):
        return by_name
    # One parameter: the only array, or the only one that is no row of labels, is meant for it.
    candidates = list(feeds)
    if len(candidates) > 1:
        candidates = [name for name, array in feeds.items() if array.ndim > 1 and not name.startswith("_")]
    if len(required) == 1 and len(candidates) == 1:
        return {required[0]: candidates[0]}
    raise _no_array(next((name for name in required if name not in by_name), offered[0].name), feeds)


def _no_array(name: str, feeds: Feeds) -> FormatError:
    near = difflib.get_close_matches(name, list(feeds), n=1, cutoff=0.0)[0]
    return FormatError(
        f"the data has no array '{name}' for the module's forward (it has {', '.join(feeds)})",
        fix=f"rename '{near}' to '{name}'",
    )


def nothing_named(module: torch.nn.Module) -> FormatError:
    """Describes what to do about a module none of whose inputs has a name."""
    if not passes_on(module):
        return FormatError("the module's forward takes no inputs", fix="let it take its inputs as parameters")
    inner = next((name for name, _ in module.named_children()), "module")
    return FormatError(
        "the module's forward takes *args and **kwargs, which do not declare its inputs",
        fix=f"convert the module that it calls: torch.save(model.{inner}, path), or build that one with --model",
    )
