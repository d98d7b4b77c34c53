"""Quantizes one model with onnxruntime's own quantizer, as its documentation recommends: the rival of ``compare.py``.

Run: python benchmarks/onnxruntime_static.py FLOAT.onnx CALIB.npz OUT.onnx [--method minmax|entropy|percentile]
       [--reduce-range]

Static quantization in QDQ form after its preprocessing: weights per channel in int8, activations in uint8. Reads one
sample at a time. Its documentation recommends ``--reduce-range`` for x86 without VNNI: weights then have 7 bits.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from rows import Rows, open_session

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class SampleReader(CalibrationDataReader):
    """Gives one sample after the other."""

    def __init__(self, rows: Rows) -> None:
        """Takes the samples of one model."""
        self._samples = rows.singles()

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """Returns the next sample, None after the last."""
        return next(self._samples, None)


def main() -> None:
    """Preprocesses and quantizes."""
    parser = argparse.ArgumentParser(description="Quantizes one model with onnxruntime's own quantizer.")
    parser.add_argument("model", type=Path)
    parser.add_argument("calib", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--method", choices=METHODS, default="minmax")
    parser.add_argument("--reduce-range", action="store_true", help="weights of 7 bits, for x86 without VNNI")
    arguments = parser.parse_args()
    rows = Rows.read(open_session(arguments.model, 1), arguments.calib)
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(arguments.model), str(prepared))
        except Exception:  # noqa: BLE001 - its symbolic shape inference gives up in many ways; it says to skip it then
            quant_pre_process(str(arguments.model), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(arguments.output),
            SampleReader(rows),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[arguments.method],
            reduce_range=arguments.reduce_range,
        )


if __name__ == "__main__":
    main()
