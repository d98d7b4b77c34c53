"""The values of ``--target``: the targets of all backends."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module

from qtool.backends.registry import BACKENDS
from qtool.errors import UsageError
from qtool.schemes import Scheme


def _targets_of(backend: str) -> Mapping[str, Scheme]:
    """Returns ``TARGETS`` of the module ``targets`` beside the backend, which needs less to be imported."""
    package = BACKENDS[backend].partition(":")[0].rpartition(".")[0]
    targets: Mapping[str, Scheme] = import_module(f"{package}.targets").TARGETS
    return targets


# Documentation and tests cover every row.
PRESETS: Mapping[str, Scheme] = {name: scheme for key in BACKENDS for name, scheme in _targets_of(key).items()}
AUTO = "auto"


def preset(name: str) -> Scheme:
    """Returns the preset of that name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in PRESETS:
        near = get_close_matches(name, (AUTO, *PRESETS), n=1, cutoff=0.0)
        raise UsageError(
            f"there is no target '{name}'", fix=f"did you mean '{near[0]}'? all of them: {', '.join((AUTO, *PRESETS))}"
        )
    return PRESETS[name]
