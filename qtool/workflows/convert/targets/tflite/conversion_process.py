"""Converts one graph with litert-torch, in a process of its own: its compiler ends the process on what it cannot do.

python -m qtool.workflows.convert.targets.tflite.conversion_process graph.onnx model.tflite
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from qtool.errors import InputError
from qtool.formats.onnx.onnx_file import OnnxFile

# What starts the line with the reason, among the messages of libraries.
REASON = "qtool-reason "


# What torch.export, litert-torch and MLIR raise where they cannot go on.
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def main(graph: Path, path: Path) -> None:
    """Writes ``path``; the reason where that fails is the last line of the standard output."""
    try:
        _convert(graph, path)
    except InputError as error:
        _tell(error.problem, error.fix)
    except _FAILURES as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        _tell(f"litert-torch stops: {said[0] if said else type(error).__name__}", None)


def _tell(problem: str, fix: str | None) -> None:
    sys.stdout.write(f"\n{REASON}{json.dumps({'problem': problem, 'fix': fix})}\n")
    sys.exit(1)


def _convert(graph: Path, path: Path) -> None:
    import litert_torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    from qtool.workflows.convert.targets.tflite.graph_program import GraphProgram, sample_feeds
    from qtool.workflows.convert.targets.tflite.tables import dequantize_before_gather

    model = OnnxFile().read(graph)
    dequantize_before_gather(model)
    program = GraphProgram(model).eval()
    quantized = any(node.op_type == "DequantizeLinear" for node in model.graph)
    # The quantizer is not used: its kind tells the converter that Q/DQ are static, and become integers.
    config = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config()))
    converted = litert_torch.convert(
        program, sample_kwargs=sample_feeds(program, model), quant_config=config if quantized else None
    )
    converted.export(str(path))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
