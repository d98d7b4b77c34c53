"""Quantizes one model with NNCF, as its documentation recommends: the rival of ``compare.py`` and ``runtimes.py``.

Run: python benchmarks/nncf_quantizer.py FLOAT.onnx CALIB.npz OUT [--transformer] [--openvino]

One sample at a time. For onnxruntime, the mixed preset and OUT.onnx. With ``--openvino``, defaults throughout and
OUT.xml in OpenVINO's own format or, where NNCF fails on that form of the model, OUT.onnx with its support for ONNX.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import nncf
import onnx
from rows import Rows, open_session


def main() -> None:
    """Quantizes."""
    parser = argparse.ArgumentParser(description="Quantizes one model with NNCF.")
    parser.add_argument("model", type=Path)
    parser.add_argument("calib", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--transformer", action="store_true", help="tell it that the model is a transformer")
    parser.add_argument("--openvino", action="store_true", help="quantize for OpenVINO")
    arguments = parser.parse_args()
    samples = list(Rows.read(open_session(arguments.model, 1), arguments.calib).singles())
    options: dict[str, Any] = {
        "model_type": nncf.ModelType.TRANSFORMER if arguments.transformer else None,
        "subset_size": len(samples),
    }
    if arguments.openvino and _in_openvino(arguments, samples, options):
        return
    if not arguments.openvino:
        options["preset"] = nncf.QuantizationPreset.MIXED
    quantized = nncf.quantize(onnx.load(arguments.model), nncf.Dataset(samples), **options)
    onnx.save(quantized, arguments.output.with_suffix(".onnx"))


def _in_openvino(arguments: argparse.Namespace, samples: list[Any], options: dict[str, Any]) -> bool:
    """Quantizes the model as OpenVINO reads it; returns False where NNCF fails on that."""
    import openvino

    try:
        model = openvino.Core().read_model(str(arguments.model))
        quantized = nncf.quantize(model, nncf.Dataset(samples), **options)
        openvino.save_model(quantized, arguments.output.with_suffix(".xml"), compress_to_fp16=False)
    except Exception as error:  # noqa: BLE001 - it fails in errors of many kinds
        print(f"NNCF fails on the model in OpenVINO's form: {type(error).__name__}: {error}")
        return False
    return True


if __name__ == "__main__":
    main()
