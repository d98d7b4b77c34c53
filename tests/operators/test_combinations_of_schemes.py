"""Every kind of operator in every combination of types, zero points and scales that there is a kernel for."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from qtool.backends.targets import PRESETS
from qtool.calib.grid import Grid
from qtool.schemes import Scheme as Integers
from tests.operators.all_kinds import KINDS
from tests.operators.kinds import Bound, Kind, Scheme
from tests.operators.measuring import Subject

# Zero points that are fixed for weights cost nothing here, and those that are free little.
_SLACK_DB = 3.0


def _combinations() -> dict[str, Integers]:
    grids = [Grid(bits=8, signed=signed, symmetric=symmetric) for signed, symmetric in product((False, True), repeat=2)]
    found = {}
    for activations, weights, per_channel in product(grids, grids, (False, True)):
        # That has no kernel, and the command line refuses it.
        if activations.signed and not weights.signed:
            continue
        scheme = replace(PRESETS["x86"], activations=activations, weights=weights, per_channel=per_channel)
        found[scheme.description] = scheme
    return found


def _bound(kind: Kind, integers: Integers) -> Bound:
    if integers.activations.symmetric:
        return kind.bounds[Scheme.SYMMETRIC]
    return kind.bounds[Scheme.CHANNEL if integers.per_channel else Scheme.TENSOR]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_of_operator_stays_near_to_torch_in_every_combination(kind: Kind, tmp_path: Path) -> None:
    subject = Subject(kind, tmp_path)
    far = {}
    for number, (name, integers) in enumerate(_combinations().items()):
        way = subject.statically(integers, f"{number}")
        if way.error.db < _bound(kind, integers).least_db - _SLACK_DB:
            far[name] = way.error.db
    assert not far
