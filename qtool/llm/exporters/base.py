"""The protocol of exporters."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol


class DecoderExporter(Protocol):
    """Writes the decoder of a transformers folder as one graph with a KV cache, in a process of its own.

    Attributes:
        package: the package that it needs, as it is imported.
        distribution: the same as it is installed.
        knows_genai_types: whether the types of models that it writes are those of onnxruntime-genai.
    """

    package: ClassVar[str]
    distribution: ClassVar[str]
    knows_genai_types: ClassVar[bool]

    def export(self, source: Path, target: Path, scratch: Path, *, fuse: bool) -> None:
        """Writes graph, ``genai_config.json`` and tokenizer of ``source`` into ``target``; runs in that process.

        Args:
            source: a folder with a decoder's configuration, safetensors and tokenizer, and nothing else.
            target: an empty folder.
            scratch: an empty folder for files that nobody needs later.
            fuse: whether the projections of queries, keys and values may become one product.
        """
        ...
