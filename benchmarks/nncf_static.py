"""Quantizes one model with NNCF, as its documentation recommends: a rival of ``compare.py``, where it is installed.

Run: python benchmarks/nncf_static.py FLOAT.onnx CALIB.npz OUT.onnx [--transformer]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nncf
import onnx
from rows import Rows, open_session


def main() -> None:
    """Quantizes with the mixed preset, one sample at a time."""
    parser = argparse.ArgumentParser(description="Quantizes one model with NNCF.")
    parser.add_argument("model", type=Path)
    parser.add_argument("calib", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--transformer", action="store_true", help="tell it that the model is a transformer")
    arguments = parser.parse_args()
    samples = list(Rows.read(open_session(arguments.model, 1), arguments.calib).singles())
    quantized = nncf.quantize(
        onnx.load(arguments.model),
        nncf.Dataset(samples),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if arguments.transformer else None,
        subset_size=len(samples),
    )
    onnx.save(quantized, arguments.output)


if __name__ == "__main__":
    main()
