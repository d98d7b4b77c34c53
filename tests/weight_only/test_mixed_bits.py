"""The bits of each weight, against every combination tried out."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.search.mixed_bits import FLOAT_BITS, BitsOption, bits_for_noise, bits_for_size

_BITS = (2, 4, 8)


def _forms(count: int, noise: float) -> list[BitsOption]:
    forms = [BitsOption(bits=bits, size=count * bits / 8, noise=noise * 4.0 ** (2 - bits)) for bits in _BITS]
    return [*forms, BitsOption(bits=FLOAT_BITS, size=count * 4.0, noise=0.0)]


_WEIGHTS = st.dictionaries(
    st.sampled_from("abcd"),
    st.builds(_forms, st.integers(16, 4096), st.floats(1e-4, 1.0)),
    min_size=1,
)


def _totals(options: dict[str, list[BitsOption]], chosen: dict[str, int]) -> tuple[float, float]:
    forms = [next(form for form in options[name] if form.bits == bits) for name, bits in chosen.items()]
    return sum(form.size for form in forms), sum(form.noise for form in forms)


def _every(options: dict[str, list[BitsOption]]) -> list[tuple[float, float]]:
    return [
        (sum(form.size for form in forms), sum(form.noise for form in forms)) for forms in product(*options.values())
    ]


@given(options=_WEIGHTS, share=st.floats(0.0, 1.0))
def test_the_noise_is_reached_in_little_more_than_the_least_size(
    options: dict[str, list[BitsOption]], share: float
) -> None:
    most = share * sum(forms[0].noise for forms in options.values())
    size, noise = _totals(options, bits_for_noise(options, most))
    assert noise <= most
    least = min(size for size, noise in _every(options) if noise <= most)
    # One step too many at most.
    assert size <= least + max(after.size for forms in options.values() for after in forms[1:])


@given(options=_WEIGHTS, share=st.floats(0.0, 1.0))
def test_the_size_is_kept(options: dict[str, list[BitsOption]], share: float) -> None:
    sizes = [sum(forms[place].size for forms in options.values()) for place in (0, -1)]
    most = sizes[0] + share * (sizes[1] - sizes[0])
    size, noise = _totals(options, bits_for_size(options, most))
    assert size <= most + 1e-9
    smallest = _totals(options, dict.fromkeys(options, 2))[1]
    assert noise <= smallest


def test_bits_go_where_they_take_away_most() -> None:
    options = {"quiet": _forms(1000, 0.001), "loud": _forms(1000, 1.0)}
    assert bits_for_noise(options, 0.01) == {"quiet": 2, "loud": 8}
    assert bits_for_size(options, 1000 * (2 + 4) / 8) == {"quiet": 2, "loud": 4}


@pytest.mark.parametrize("most", [0.0, 1e-12])
def test_without_noise_everything_stays_float(most: float) -> None:
    options = {"a": _forms(10, 1.0), "b": _forms(20, 0.5)}
    assert bits_for_noise(options, most) == {"a": FLOAT_BITS, "b": FLOAT_BITS}


def test_where_nothing_fits_it_is_the_smallest() -> None:
    assert bits_for_size({"a": _forms(10, 1.0)}, 0.0) == {"a": 2}


def test_forms_that_gain_nothing_are_passed_over() -> None:
    forms = [
        BitsOption(bits=2, size=2.0, noise=1.0),
        BitsOption(bits=4, size=4.0, noise=1.5),
        BitsOption(bits=8, size=8.0, noise=0.1),
    ]
    assert bits_for_noise({"a": forms}, 0.5) == {"a": 8}


def test_steps_that_a_large_one_makes_needless_are_taken_back() -> None:
    # The table takes away least for its bytes and comes last; with it, none of the others has to have more bits.
    options = {"table": _forms(100_000, 1.0), **{name: _forms(100, 0.05) for name in "abc"}}
    assert bits_for_noise(options, 0.22) == {"table": 4, **dict.fromkeys("abc", 2)}
