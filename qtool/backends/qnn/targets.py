"""The targets of QNN on Qualcomm NPUs."""

from __future__ import annotations

from collections.abc import Mapping

from qtool.schemes import S8_SYMMETRIC, U8, Scheme

TARGETS: Mapping[str, Scheme] = {
    # The HTP runs only whole groups of Q/DQ, so every tensor needs them; onnxruntime's own configuration for QNN uses
    # u8 activations, and per-channel weights have to be symmetric s8
    # (https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html, Generating a quantized model;
    # https://github.com/onnxruntime/onnxruntime-qnn/issues/650).
    "qnn": Scheme(
        target="qnn",
        machine="Qualcomm NPUs through QNN",
        activations=U8,
        weights=S8_SYMMETRIC,
        backend="qnn",
        carries_integers=False,
        activation_bits=(8, 16),
        placement_only=True,
    ),
}
