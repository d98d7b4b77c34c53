"""Quantizes one model with NNCF for OpenVINO, as its documentation recommends: the rival of ``runtimes.py``.

Run: python benchmarks/nncf_openvino.py FLOAT.onnx CALIB.npz OUT [--transformer]

Defaults throughout, one sample at a time. Writes OUT.xml in OpenVINO's own format or, where NNCF fails on that form of
the model, OUT.onnx with NNCF's support for ONNX.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nncf
import onnx
import openvino
from rows import Rows, open_session


def main() -> None:
    """Quantizes with the default preset."""
    parser = argparse.ArgumentParser(description="Quantizes one model with NNCF for OpenVINO.")
    parser.add_argument("model", type=Path)
    parser.add_argument("calib", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--transformer", action="store_true", help="tell it that the model is a transformer")
    arguments = parser.parse_args()
    samples = list(Rows.read(open_session(arguments.model, 1), arguments.calib).singles())
    kind = nncf.ModelType.TRANSFORMER if arguments.transformer else None
    try:
        model = openvino.Core().read_model(str(arguments.model))
        quantized = nncf.quantize(model, nncf.Dataset(samples), model_type=kind, subset_size=len(samples))
        openvino.save_model(quantized, arguments.output.with_suffix(".xml"), compress_to_fp16=False)
    except Exception as error:  # noqa: BLE001 - it fails in errors of many kinds
        print(f"NNCF fails on the model in OpenVINO's form: {type(error).__name__}: {error}")
        quantized = nncf.quantize(
            onnx.load(arguments.model), nncf.Dataset(samples), model_type=kind, subset_size=len(samples)
        )
        onnx.save(quantized, arguments.output.with_suffix(".onnx"))


if __name__ == "__main__":
    main()
