"""The exporters that write decoder folders, in the order in which they are asked; a new one is a line here.

They take a folder of transformers, run without a network, and write the graph, ``genai_config.json`` and the tokenizer.
On SmolLM2-135M both packages need five seconds of processor time, and their graphs are equally fast. The first is what
onnxruntime-genai itself brings, and writes the smaller graph; mobius knows more kinds, such as GPT-2 and Gemma 3. What
an exporter writes is kept only if it computes the same as torch, and the next one is asked otherwise.
torch.onnx needs 133 s for that model without a cache, and transformers' exporter builds on it; neither writes what
onnxruntime-genai reads.
"""

from __future__ import annotations

from collections.abc import Mapping

EXPORTERS: Mapping[str, str] = {
    "onnxruntime-genai": "qtool.llm.exporters.genai_builder:GenaiBuilder",
    "mobius": "qtool.llm.exporters.mobius:Mobius",
    "mobius, standard": "qtool.llm.exporters.mobius:MobiusStandard",
}
