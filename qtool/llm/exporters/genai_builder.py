"""The model builder of onnxruntime-genai."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class GenaiBuilder:
    """Writes float32 graphs for the CPU, with GroupQueryAttention.

    Source: https://github.com/microsoft/onnxruntime-genai/blob/main/src/python/py/models/README.md.
    """

    package: ClassVar[str] = "onnxruntime_genai"
    distribution: ClassVar[str] = "onnxruntime-genai"
    knows_genai_types: ClassVar[bool] = True

    def export(self, source: Path, target: Path, scratch: Path, *, fuse: bool) -> None:
        """Writes the folder."""
        from onnxruntime_genai.models import builder

        # Windowed caches are longer than the model says they may be, so that only onnxruntime-genai could run them.
        wanted = ["hf_token=false", "windowed_kv_cache=false", f"fuse_qkv={str(fuse).lower()}"]
        where = ("", str(source), str(target), "fp32", "cpu", str(scratch))
        builder.create_model(*where, **builder.parse_extra_options(*where, wanted))
