"""The targets of OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping

from qtool.schemes import S8_SYMMETRIC, U8, Scheme

TARGETS: Mapping[str, Scheme] = {
    # The preset "mixed" of NNCF: asymmetric activations, symmetric weights, float biases
    # (https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training/basic-quantization-flow.html).
    "openvino": Scheme(
        target="openvino",
        machine="OpenVINO on Intel CPUs with VNNI, GPUs and NPUs",
        activations=U8,
        weights=S8_SYMMETRIC,
        integer_biases=False,
        backend="openvino",
        carries_integers=False,
    ),
}
