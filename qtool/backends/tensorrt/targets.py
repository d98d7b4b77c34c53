"""The targets of TensorRT."""

from __future__ import annotations

from collections.abc import Mapping

from qtool.schemes import S8_SYMMETRIC, Scheme

TARGETS: Mapping[str, Scheme] = {
    # INT8 is signed and symmetric. Q/DQ are on the inputs of layers, not on their outputs, and on both inputs of a
    # residual Add; biases stay float
    # (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html).
    "tensorrt": Scheme(
        target="tensorrt",
        machine="TensorRT on NVIDIA GPUs",
        activations=S8_SYMMETRIC,
        weights=S8_SYMMETRIC,
        integer_biases=False,
        backend="tensorrt",
        carries_integers=False,
        takes_float8=True,
        placement_only=True,
    ),
}
