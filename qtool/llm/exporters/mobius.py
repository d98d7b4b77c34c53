"""The exporter mobius-onnx."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar


class Mobius:
    """Writes float32 graphs for the CPU, with GroupQueryAttention and its packed projections.

    Source: https://github.com/onnxruntime/mobius.
    """

    package: ClassVar[str] = "mobius"
    distribution: ClassVar[str] = "mobius-onnx"
    knows_genai_types: ClassVar[bool] = False
    provider: ClassVar[str] = "cpu"

    def export(self, source: Path, target: Path, scratch: Path, *, fuse: bool) -> None:
        """Writes the folder; its projections are always as the provider has them."""
        from mobius.__main__ import main

        arguments = ["--config", str(source), "--dtype", "f32", "--ep", self.provider, "--runtime", "ort-genai"]
        sys.argv = ["mobius", "build", *arguments, str(target)]
        main()


class MobiusStandard(Mobius):
    """Writes graphs with the standard's Attention, also of decoders that GroupQueryAttention cannot compute."""

    provider: ClassVar[str] = "default"
