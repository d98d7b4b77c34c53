"""Runs the main job from Python: converts, quantizes and reports with calls instead of commands.

Run: python samples/03_python_api.py [FOLDER]

Writes into FOLDER (default: demo-output).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import qtool

SAMPLES = Path(__file__).resolve().parent


def main() -> None:
    """Makes an INT8 model of the digit classifier and tells what became of its accuracy."""
    parser = argparse.ArgumentParser(description="Runs the main job on the digit model from Python.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo-output"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)

    converted = qtool.convert(
        qtool.ConvertRequest(
            source=SAMPLES / "mnist_cnn.pth",
            target=qtool.TargetFormat.ONNX,
            architecture=qtool.Architecture(f"{SAMPLES / 'mnist_cnn.py'}:build"),
            calib_data=str(SAMPLES / "digits_calib.npz"),
            output=folder / "from_python.onnx",
            force=True,
        )
    )
    quantized = qtool.quantize(
        qtool.QuantizeRequest(
            source=qtool.ModelSource(path=converted.output),
            data=qtool.DataRequest(source=str(SAMPLES / "digits_calib.npz")),
            searches=qtool.searches(qtool.Effort.FAST),
            timing=qtool.Timing(for_size=True),
            output=folder / "from_python.int8.onnx",
            force=True,
        )
    )
    print(f"{quantized.output}: {quantized.coverage.share:.0%} of its layers run on integers")

    report = qtool.report(
        qtool.ReportRequest(
            float_model=converted.output,
            quantized_models=(quantized.output,),
            datasets=(qtool.DataSource(source=str(SAMPLES / "digits_eval.npz")),),
            gates=(qtool.parse_gate("top1_drop > 0.3"), qtool.parse_gate("size_ratio > 0.4")),
        )
    )
    (comparison,) = report.comparisons
    for name in ("top1_float", "top1_drop", "size_ratio", "sqnr_db"):
        print(f"{name}: {comparison.figures[name].value:.4g}")
    for verdict in report.verdicts:
        print(f"{verdict.condition}: {verdict.outcome}")


if __name__ == "__main__":
    main()
