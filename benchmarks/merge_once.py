"""Merges an adapter with PEFT alone or with qtool's function: what benchmarks/merging.py sets beside each other.

Run: python benchmarks/merge_once.py peft|qtool MODEL_FOLDER ADAPTER_FOLDER RESULT_FOLDER [--warm]

Prints the seconds until the weights are merged, where that comes before writing, and until they are written. Imports
are in neither; with --warm it is done once before, so that those which come late are not, either.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path


def merge_with_peft(model: str, adapter: str, result: str) -> list[float]:
    """Loads, merges and writes; returns the seconds until each of both."""
    from peft import PeftModel
    from transformers import AutoModel

    begun = time.perf_counter()
    merged = PeftModel.from_pretrained(AutoModel.from_pretrained(model), adapter).merge_and_unload()
    seconds = [time.perf_counter() - begun]
    merged.save_pretrained(result)
    return [*seconds, time.perf_counter() - begun]


def merge_with_qtool(model: str, adapter: str, result: str) -> list[float]:
    """Merges tensor by tensor into the result; returns the seconds that it took."""
    from qtool.progress import Silent
    from qtool.workflows.lora.merge_weights import merge_lora
    from qtool.workflows.lora.request import AdapterSource, MergeRequest

    begun = time.perf_counter()
    source = AdapterSource(path=Path(adapter))
    merge_lora(MergeRequest(base=Path(model), adapters=(source,), output=Path(result)), Silent())
    return [time.perf_counter() - begun]


def main() -> None:
    """Merges and prints."""
    parser = argparse.ArgumentParser(description="Merges an adapter and prints the seconds.")
    parser.add_argument("tool", choices=("peft", "qtool"))
    for name in ("model", "adapter", "result"):
        parser.add_argument(name)
    parser.add_argument("--warm", action="store_true", help="do it once before")
    arguments = parser.parse_args()
    tool = merge_with_peft if arguments.tool == "peft" else merge_with_qtool
    for _ in range(2 if arguments.warm else 1):
        shutil.rmtree(arguments.result, ignore_errors=True)
        seconds = tool(arguments.model, arguments.adapter, arguments.result)
    print(*seconds)


if __name__ == "__main__":
    main()
