"""The targets of OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qtool.schemes import S8_SYMMETRIC, U8, Scheme

# Without VNNI OpenVINO multiplies u8 by s8 with VPMADDUBSW, which saturates at 16 bits: a MatMul of 255 by 127 over 64
# inputs came out as half of what it is on a Haswell
# (https://docs.openvino.ai/2025/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html).
_LARGEST_PAIR = 32767 // 255

# The preset "mixed" of NNCF: asymmetric activations, symmetric weights, float biases
# (https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training/basic-quantization-flow.html).
_OPENVINO = Scheme(
    target="openvino",
    machine="OpenVINO on Intel CPUs with VNNI, GPUs and NPUs",
    activations=U8,
    weights=S8_SYMMETRIC,
    integer_biases=False,
    backend="openvino",
    carries_integers=False,
)

TARGETS: Mapping[str, Scheme] = {
    "openvino": _OPENVINO,
    "openvino-avx2": replace(
        _OPENVINO,
        target="openvino-avx2",
        machine="OpenVINO on x86 without VNNI",
        largest_pair=_LARGEST_PAIR,
    ),
}
