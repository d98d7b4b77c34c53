"""The vectors that a convolution's weights multiply are those of torch's unfold."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from qtool.weights.input_hessian import LayerInput

_SIDES = st.tuples(st.integers(5, 12), st.integers(5, 12))
_PAIRS = st.tuples(st.integers(1, 2), st.integers(1, 2))


@given(
    sides=_SIDES,
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=_PAIRS,
    dilations=_PAIRS,
    pads=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    samples=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    every=st.integers(1, 3),
)
def test_columns_are_what_torch_unfolds(
    sides: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int],
    samples: int,
    groups: int,
    every: int,
) -> None:
    value = np.random.default_rng(0).standard_normal((samples, 4, *sides)).astype(np.float32)
    layer = LayerInput(
        node="layer",
        tensor="x",
        weight="w",
        operator="Conv",
        kernel=kernel,
        strides=strides,
        dilations=dilations,
        pads=(*pads, *pads),
        groups=groups,
        inputs=4 // groups * kernel[0] * kernel[1],
        output_axis=0,
    )
    unfolded = torch.nn.functional.unfold(
        torch.from_numpy(value), kernel, dilation=dilations, padding=pads, stride=strides
    )
    expected = unfolded.permute(1, 0, 2).reshape(groups, layer.inputs, -1).numpy()
    count = layer.positions(value.shape)
    assert count == min(expected.shape[2], 256)
    chosen = (np.arange(count) * (expected.shape[2] - 1) / max(count - 1, 1)).astype(int)
    np.testing.assert_array_equal(layer.columns(value), expected[:, :, chosen])
    np.testing.assert_array_equal(layer.columns(value, every=every), expected[:, :, chosen[::every]])
