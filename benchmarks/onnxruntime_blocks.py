"""Quantizes the weights of one model with onnxruntime's own quantizer: a rival of ``language_models.py``.

Run: python benchmarks/onnxruntime_blocks.py FLOAT.onnx OUT.onnx [--method default|hqq|k_quant|gptq] [--bits N]
       [--block-size N] [--symmetric] [--accuracy-level N] [--rows ROWS.npz] [--head-size N]

GPTQ reads ``--rows``: token ids as ``input_ids``, one row a sample.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, matmul_nbits_quantizer
from rows import DecoderFeeds

METHODS = ("default", "hqq", "k_quant", "gptq")


class RowReader(CalibrationDataReader):
    """Gives one row of tokens after the other, with empty caches where the graph has some."""

    def __init__(self, model: Path, rows: np.ndarray[Any, Any], head_size: int) -> None:
        """Looks at the model's inputs."""
        session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        self._feeds: Iterator[dict[str, np.ndarray[Any, Any]]] = map(DecoderFeeds(session, head_size).first, rows)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """Returns the next row, None after the last."""
        return next(self._feeds, None)


def main() -> None:
    """Quantizes every product with a constant; the table stays float."""
    parser = argparse.ArgumentParser(description="Quantizes weights with onnxruntime's own quantizer.")
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--method", choices=METHODS, default="default")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--accuracy-level", type=int, default=0)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--head-size", type=int, default=64, help="the last dimension of caches")
    arguments = parser.parse_args()
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
        onnx.load(str(arguments.model)),
        bits=arguments.bits,
        block_size=arguments.block_size,
        is_symmetric=arguments.symmetric,
        accuracy_level=arguments.accuracy_level,
        algo_config=_config(arguments),
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(arguments.output), use_external_data_format=True)


def _config(arguments: argparse.Namespace) -> matmul_nbits_quantizer.WeightOnlyQuantConfig | None:
    if arguments.method == "hqq":
        return matmul_nbits_quantizer.HQQWeightOnlyQuantConfig(block_size=arguments.block_size, bits=arguments.bits)
    if arguments.method == "k_quant":
        return matmul_nbits_quantizer.KQuantWeightOnlyQuantConfig()
    if arguments.method == "gptq":
        with np.load(arguments.rows) as file:
            reader = RowReader(arguments.model, file["input_ids"], arguments.head_size)
        return matmul_nbits_quantizer.GPTQWeightOnlyQuantConfig(reader, block_size=arguments.block_size)
    return None


if __name__ == "__main__":
    main()
