"""The targets of onnxruntime's CPU provider."""

from __future__ import annotations

from collections.abc import Mapping

from qtool.schemes import S8, S8_SYMMETRIC, U8, Scheme

# Without VNNI onnxruntime multiplies u8 by s8 with VPMADDUBSW, which saturates at 16 bits
# (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, Data type selection).
_LARGEST_PAIR = 32767 // 255

TARGETS: Mapping[str, Scheme] = {
    # A model whose sums fit into 16 bits is exact with 32 bits, too: one file serves both kinds.
    "x86": Scheme(
        target="x86",
        machine="any x86, with VNNI or without",
        activations=U8,
        weights=S8_SYMMETRIC,
        largest_pair=_LARGEST_PAIR,
    ),
    # u8 activations by s8 weights run 1.6 to 2.4 times faster than float; s8 by s8 hardly faster than float.
    "x86-vnni": Scheme(target="x86-vnni", machine="x86 with VNNI", activations=U8, weights=S8_SYMMETRIC),
    "x86-avx2": Scheme(
        target="x86-avx2",
        machine="x86 with AVX2 or AVX-512, but no VNNI",
        activations=U8,
        weights=S8_SYMMETRIC,
        largest_pair=_LARGEST_PAIR,
        offers_unsigned=True,
    ),
    # SDOT multiplies s8 by s8 as it is; u8 by s8 flips the weights first, or without dot products the activations
    # (https://github.com/microsoft/onnxruntime/pull/9902). Kernels for symmetric convolutions want s8 weights around 0.
    "arm64": Scheme(target="arm64", machine="64-bit ARM", activations=S8, weights=S8_SYMMETRIC),
}

# On ARM, onnxruntime fuses s8 activations as they are, and on x86 only what it can rewrite to u8 (the session option
# session.qdqisint8allowed, whose default is the processor's).
FUSE_SIGNED = frozenset({"arm64"})
