"""Quantizes the weights of a language model with qtool and with onnxruntime's own quantizer, and judges all in one run.

Run: python benchmarks/language_models.py FOLDER --calib TEXT --eval TEXT [--variant NAME='OPTIONS'] [--rivals] [--json]

FOLDER is what ``qtool convert`` makes of a language model: ``model.onnx`` and its tokenizer. A variant is a set of
options for ``qtool quantize``. Rivals have the table in float, as onnxruntime leaves it. Perplexity is that of rows of
128 tokens out of ``--eval``, each of which starts without a past.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from processes import Finished, run
from quantizers import HERE, Quantizer, qtool
from rows import rows_of_text

FLOAT = "float"
ROW = 128
VARIANTS = {
    "qtool 4 bits": "--scheme weights --bits 4 --block-size 128",
    "qtool 4 bits, symmetric": "--scheme weights --bits 4 --block-size 128 --weights-symmetric",
    "qtool 4 bits, table in float": "--scheme weights --bits 4 --block-size 128 --exclude Gather",
    "qtool 4 bits, block 32": "--scheme weights --bits 4 --block-size 32",
    "qtool 8 bits": "--scheme weights --bits 8 --block-size 128",
}
RIVALS = {
    "onnxruntime RTN": (),
    "onnxruntime RTN, level 4": ("--accuracy-level", "4"),
    "onnxruntime RTN, symmetric": ("--symmetric",),
    "onnxruntime RTN, block 32": ("--block-size", "32"),
    "onnxruntime HQQ": ("--method", "hqq"),
    "onnxruntime k_quant": ("--method", "k_quant", "--block-size", "32"),
    "onnxruntime GPTQ": ("--method", "gptq"),
    "onnxruntime RTN, 8 bits": ("--bits", "8"),
    "onnxruntime RTN, 8 bits, level 4": ("--bits", "8", "--accuracy-level", "4"),
}
COLUMNS = (
    "made by",
    "perplexity",
    "rise %",
    "KL",
    "same token",
    "token x",
    "64 tokens x",
    "MB",
    "made in s",
    "peak MB",
)


def main() -> int:
    """Makes, judges and prints; returns 1 where qtool's own model could not be made."""
    arguments = _arguments()
    tokenizer = arguments.folder / "tokenizer.json"
    config = json.loads((arguments.folder / "genai_config.json").read_text(encoding="utf-8"))
    head = ("--head-size", str(config["model"]["decoder"]["head_size"]))
    with tempfile.TemporaryDirectory() as scratch:
        output = arguments.keep or Path(scratch)
        calib, judged = output / "calib.npz", output / "eval.npz"
        np.savez(calib, input_ids=rows_of_text(tokenizer, arguments.calib, ROW)[: arguments.rows])
        np.savez(judged, input_ids=rows_of_text(tokenizer, arguments.eval, ROW)[-arguments.rows :])
        made: dict[str, Finished] = {}
        paths = {FLOAT: arguments.folder / "model.onnx"}
        for at, (name, options) in enumerate(arguments.variants.items()):
            paths[name] = output / str(at) / "model.onnx"
            made[name] = _made(qtool(options), paths[FLOAT], arguments.calib, paths[name])
        for at, (name, given) in enumerate(RIVALS.items() if arguments.rivals else ()):
            paths[name] = output / f"rival{at}" / "model.onnx"
            program = (sys.executable, str(HERE / "onnxruntime_blocks.py"), str(paths[FLOAT]), str(paths[name]), *given)
            paths[name].parent.mkdir(exist_ok=True)
            made[name] = run((*program, "--rows", str(calib), *head))
        for name, finished in made.items():
            if finished.code:
                print(f"{name}: {finished.last_line}", file=sys.stderr)
        models = [f"{name}={path}" for name, path in paths.items() if name == FLOAT or not made[name].code]
        options = ("--rounds", str(arguments.rounds), "--threads", str(arguments.threads))
        judging = run((sys.executable, str(HERE / "judging_decoders.py"), str(judged), *models, *head, *options))
        if judging.code:
            sys.exit(judging.last_line)
        found = json.loads(judging.output)
        for name, row in found.items():
            row["megabytes"] = sum(path.stat().st_size for path in paths[name].parent.glob("model.onnx*")) / 1e6
            if name in made:
                row |= {"seconds": made[name].seconds, "peak_mb": made[name].peak_mb}
    print(json.dumps(found, indent=2) if arguments.json else _table(found))
    return int(any(made[name].code for name in arguments.variants))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Judges quantized language models side by side.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calib", type=Path, required=True, help="text to calibrate with")
    parser.add_argument("--eval", type=Path, required=True, help="text to judge with")
    parser.add_argument("--rows", type=int, default=64, help="at most so many rows of either text")
    parser.add_argument("--variant", action="append", metavar="NAME=OPTIONS", default=[])
    parser.add_argument("--rivals", action="store_true", help="also onnxruntime's own quantizer")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of timing")
    parser.add_argument("--threads", type=int, default=2, help="threads inside an operator")
    parser.add_argument("--keep", type=Path, help="an existing folder for the quantized models")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    own = {name: options for name, _, options in (text.partition("=") for text in arguments.variant)}
    arguments.variants = own or VARIANTS
    return arguments


def _made(quantizer: Quantizer, model: Path, data: Path, output: Path) -> Finished:
    output.parent.mkdir(exist_ok=True)
    return run(quantizer.command(model, data, output))


def _table(found: dict[str, dict[str, float]]) -> str:
    base = found[FLOAT]
    cells = [COLUMNS]
    for name, row in found.items():
        cells.append(
            (
                name,
                f"{row['perplexity']:.2f}",
                f"{100 * (row['perplexity'] / base['perplexity'] - 1):.2f}",
                f"{row['divergence']:.4f}",
                f"{row['same_token']:.3f}",
                f"{base['one_token_ms'] / row['one_token_ms']:.2f}",
                f"{base['many_tokens_ms'] / row['many_tokens_ms']:.2f}",
                f"{row['megabytes']:.1f}",
                f"{row['seconds']:.0f}" if "seconds" in row else "-",
                f"{row['peak_mb']:.0f}" if row.get("peak_mb") else "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        numbers = (text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))
        lines.append("  ".join((line[0].ljust(widths[0]), *numbers)))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
