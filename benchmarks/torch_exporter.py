"""Exports one module with torch's exporter and nothing else: what ``conversion.py`` sets ``qtool convert`` beside.

Run: python benchmarks/torch_exporter.py STATE_DICT.pth file.py:factory x=batch,3,224,224 OUT.onnx
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch


def main() -> None:
    """Builds, loads and exports."""
    parser = argparse.ArgumentParser(description="Exports one module with torch's exporter and nothing else.")
    parser.add_argument("weights", type=Path, help="a bare state dict")
    parser.add_argument("factory", help="pkg.module:factory or file.py:factory")
    parser.add_argument("input", help="name and shape of its input, such as x=batch,3,224,224; names are free")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    module = _factory(arguments.factory)()
    module.load_state_dict(torch.load(arguments.weights, map_location="cpu", weights_only=True))
    name, _, text = arguments.input.partition("=")
    dims = [int(dim) if dim.isdecimal() else dim for dim in text.split(",")]
    example = torch.randn([dim if isinstance(dim, int) else 2 for dim in dims])
    free = {axis: dim for axis, dim in enumerate(dims) if isinstance(dim, str)}
    with torch.no_grad():
        torch.onnx.export(
            module.eval(),
            (example,),
            str(arguments.output),
            input_names=[name],
            dynamo=True,
            dynamic_shapes=(free,),
            external_data=False,
            verbose=False,
        )


def _factory(text: str) -> Callable[[], torch.nn.Module]:
    source, _, name = text.rpartition(":")
    if source.endswith(".py"):
        path = Path(source).resolve()
        sys.path.insert(0, str(path.parent))
        source = path.stem
    factory: Callable[[], torch.nn.Module] = getattr(importlib.import_module(source), name)
    return factory


if __name__ == "__main__":
    main()
