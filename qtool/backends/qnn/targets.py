"""What Qualcomm NPUs take through QNN."""

from __future__ import annotations

from collections.abc import Mapping

from qtool.schemes import S8_SYMMETRIC, U8, Scheme

TARGETS: Mapping[str, Scheme] = {
    # The HTP runs whole groups of Q/DQ only, so that every tensor needs them; u8 is what onnxruntime's own
    # configuration for QNN gives activations, s8 around 0 what per-channel weights need
    # (https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html, Generating a quantized model;
    # https://github.com/onnxruntime/onnxruntime-qnn/issues/650).
    "qnn": Scheme(
        target="qnn",
        machine="Qualcomm NPUs through QNN",
        activations=U8,
        weights=S8_SYMMETRIC,
        backend="qnn",
        carries_integers=False,
    ),
}
