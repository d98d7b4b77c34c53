"""What people are told that layers in float cost."""

from __future__ import annotations

import pytest

from qtool.cli.options.search import cost_of_float


@pytest.mark.parametrize(
    ("share", "told"),
    [(0.051, "at 5.1% of the time saved"), (0.0, "which takes no more time"), (-0.039, "which takes no more time")],
)
def test_layers_that_are_no_slower_in_float_cost_nothing(share: float, told: str) -> None:
    assert cost_of_float(share) == told
