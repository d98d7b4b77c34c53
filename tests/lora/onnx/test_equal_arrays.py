"""Arrays are found by their bytes, whichever values differ."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qtool.lora.onnx.equal_arrays import EqualArrays

_ARRAYS = st.lists(
    hnp.arrays(
        st.sampled_from([np.float32, np.float16, np.int8]),
        hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
        elements=st.sampled_from([0, 1]),
    ),
    min_size=1,
    max_size=8,
)


def _bytes(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array.tobytes()


@given(_ARRAYS)
def test_they_are_those_with_the_same_bytes(arrays: list[np.ndarray]) -> None:
    found = EqualArrays(arrays.__getitem__)
    for place, array in enumerate(arrays):
        found.add(place, array)
    for place, array in enumerate(arrays):
        alike = [other for other in range(len(arrays)) if _bytes(arrays[other]) == _bytes(array)]
        assert list(found.equal_to(array)) == alike
        assert found.others_like(place) == [other for other in alike if other != place]
        assert found.has_form(array.dtype, array.shape)


def test_one_value_of_many_tells_them_apart_whatever_the_order_in_memory() -> None:
    stored = np.zeros((300, 5000), np.float32)
    other = stored.copy()
    other[17, 4001] = np.nan
    found = EqualArrays({"zeros": stored, "one": other}.__getitem__)
    found.add("zeros", stored)
    found.add("one", other)
    assert list(found.equal_to(np.asfortranarray(other))) == ["one"]
    assert list(found.equal_to(np.zeros((5000, 300), np.float32).T)) == ["zeros"]
    assert found.others_like("one") == []
    assert not found.has_form(np.float64, (300, 5000))
    assert not found.has_form(np.float32, (5000, 300))
